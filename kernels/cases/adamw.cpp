#include "kernels/adamw.h"

#include "kernels/cases/operator_case.h"
#include "kernels/core/copy.h"

namespace braid::cases {
namespace {

using enum Storage;

// Weights and gradients are wide; the activation dtype is that of the weights that the model computes with, which are a
// copy where it is another one.
constexpr Closeness kWideUpdate = {.bf16 = kUsual.f32, .cpu = {1e-6, 1e-4}};

void declare(Trial& t, int64_t n, Storage moments, int64_t num_steps) {
  const Closeness of_moments = moments == kBf16 ? Closeness{.f32 = kUsual.bf16, .cpu = {1e-6, 1e-4}} : kWideUpdate;
  const Var gradient = t.input("gradient", {n}, normal(1e-3, 1e-3), kWide);
  const Var weight = t.in_out("weight", {n}, normal(), kWide, kWideUpdate);
  const Var m = t.in_out("m", {n}, normal(1e-3), moments, of_moments);
  const Var v = t.in_out("v", {n}, uniform(1e-6, 1e-5), moments, of_moments);
  const Var rounded = t.output("rounded", {n});
  t.forward("adamw_update", {weight, m, v, rounded},
            [=](Context& ctx) {
              for (int64_t step = 1; step <= num_steps; ++step)
                adamw_update(ctx, {weight, m, v}, rounded, gradient,
                             {.lr = 1e-2,
                              .beta1 = 0.9,
                              .beta2 = 0.95,
                              .eps = 1e-8,
                              .weight_decay = 0.1,
                              .gradient_scale = step % 2 ? 0.7 : 1,
                              .step = step});
            },
            {.bytes = bytes_of(weight, weight, m, m, v, v, gradient, rounded)});
  const Var converted = t.output("the weight, rounded", {n});
  t.forward("convert", {converted}, [=](Context& ctx) { convert(ctx, converted, weight); });
  t.same_bits(rounded, converted);
}

Variant of(const std::string& label, int64_t n, Storage moments, int64_t num_steps) {
  return {label, [=](Trial& t) { declare(t, n, moments, num_steps); }};
}

Variants hard() {
  Variants variants;
  for (int64_t n : {1, 3, 63, 64, 65, 130, 1024, 5003, 0}) {
    variants.push_back(of(concat(n, " numbers, 30 steps"), n, kWide, 30));
    variants.push_back(of(concat(n, " numbers, bf16 moments"), n, kBf16, 1));
  }
  return variants;
}

Variants checked(const Sizes&) { return {of("5003 numbers", 5003, kWide, 2)}; }

Variants timed(const Sizes& s) {
  return {of(concat(s.shard_elements, ", moments wide"), s.shard_elements, kWide, 1),
          of(concat(s.shard_elements, ", moments BF16"), s.shard_elements, kBf16, 1)};
}

}  // namespace

OperatorCase adamw_case() { return {"adamw", hard, checked, timed, only_implementation}; }

}  // namespace braid::cases
