#include "kernels/adamw.h"

#include "kernels/cases/operator_case.h"
#include "kernels/core/copy.h"
#include "kernels/core/memory.h"
#include "kernels/core/moment_codes.h"
#include "kernels/split_weights.h"

namespace braid::cases {
namespace {

using enum Storage;

// The activation dtype is that of the weights that the model computes with; masters are wide.
constexpr Closeness kWideUpdate = {.bf16 = kUsual.f32, .cpu = {1e-6, 1e-4}};

struct Stored {
  Storage moments, gradient;
};

// Each step from masters with low bits of their own; or, to be timed, the update alone.
enum class Masters { kSplitFirst, kAsTheyStart };

AdamWStep settings(int64_t step, uint64_t stream = 0) {
  return {.lr = 1e-2,
          .beta1 = 0.9,
          .beta2 = 0.95,
          .eps = 1e-8,
          .weight_decay = 0.1,
          .gradient_scale = step % 2 ? 0.7 : 1,
          .step = step,
          .stream = stream};
}

void declare(Trial& t, int64_t n, Stored stored, int64_t num_steps, Masters masters) {
  const Closeness of_moments =
      stored.moments == kBf16 ? Closeness{.f32 = kUsual.bf16, .cpu = {1e-6, 1e-4}} : kWideUpdate;
  const Var gradient =
      t.input("gradient", {n}, normal(1e-3, 1e-3), t.activation() == DType::kBF16 ? stored.gradient : kWide);
  const Var weight = t.in_out("weight", {n}, normal()), low = t.low_bits("low", weight);
  const Var m = t.in_out("m", {n}, normal(1e-3), stored.moments, of_moments);
  const Var v = t.in_out("v", {n}, uniform(1e-6, 1e-5), stored.moments, of_moments);
  const auto update = [=](Context& ctx) {
    for (int64_t step = 1; step <= num_steps; ++step) adamw_update(ctx, {weight, m, v, low}, gradient, settings(step));
  };
  const Work work = {.bytes = bytes_of(weight, weight, low, low, m, m, v, v, gradient)};
  if (masters == Masters::kAsTheyStart) return t.forward("adamw_update", {weight, low, m, v}, update, work);
  const Var start = t.input("start", {n}, normal(), kWide);
  const Var master = t.output("master", {n}, kWide, kWideUpdate);
  t.forward("adamw_update", {weight, low, m, v, master}, [=](Context& ctx) {
    split_weights(ctx, weight, low, start);
    update(ctx);
    join_weights(ctx, master, weight, low);
  });
}

// Moments in a byte each, from 0 on. Codes are no result, but the next updates are: a number that lies between two of
// them to the last bit may get either. In five steps of 5003 elements one code in 75,000 does with a GPU's roots, one
// in 400,000 with exact ones; 99 of 100 such codes are worth at most 1.6e-3 of a master of size 1 in the end. The bound
// is four of those: 1.6e-3 sqrt(4 / 5003). (Simulated on a CPU: of 1000 such runs the largest error was 3.2e-5, of 2000
// with exact roots and fp32 gradients 4.1e-5.)
void declare_coded(Trial& t, int64_t n, Storage gradient_storage, int64_t num_steps, Masters masters) {
  constexpr Tolerance kSomeElements = {4.5e-5, 2e-3};
  const Closeness close = {kSomeElements, kSomeElements, kSomeElements};
  const Closeness stored = {kSomeElements, kUsual.bf16, kSomeElements};
  const Var gradient =
      t.input("gradient", {n}, normal(1e-3, 1e-3), t.activation() == DType::kBF16 ? gradient_storage : kWide);
  const Var weight = t.in_out("weight", {n}, normal(), kActivation, stored), low = t.low_bits("low", weight);
  const int64_t blocks = round_up(n, MomentCodes::kBlock) / MomentCodes::kBlock;
  const Var m = t.kept_bytes("m", {n}), v = t.kept_bytes("v", {n});
  const Var m_scale = t.in_out("m_scale", {blocks}, constant(0), kWide, close);
  const Var v_scale = t.in_out("v_scale", {blocks}, constant(0), kWide, close);
  const auto update = [=](Context& ctx) {
    for (int64_t step = 1; step <= num_steps; ++step)
      adamw_update(ctx, {weight, m, v, low, m_scale, v_scale}, gradient, settings(step, 7));
  };
  if (masters == Masters::kAsTheyStart)
    return t.forward(
        "adamw_update", {weight, low, m_scale, v_scale}, update,
        {.bytes = bytes_of(weight, weight, low, low, m, m, v, v, m_scale, m_scale, v_scale, v_scale, gradient)});
  const Var start = t.input("start", {n}, normal(), kWide);
  const Var master = t.output("master", {n}, kWide, close);
  t.forward("adamw_update", {weight, low, m_scale, v_scale, master}, [=](Context& ctx) {
    split_weights(ctx, weight, low, start);
    fill_zero(ctx, m);
    fill_zero(ctx, v);
    update(ctx);
    join_weights(ctx, master, weight, low);
  });
}

Variant coded(const std::string& label, int64_t n, Storage gradient, int64_t num_steps,
              Masters masters = Masters::kSplitFirst) {
  return {label, [=](Trial& t) { declare_coded(t, n, gradient, num_steps, masters); }};
}

Variant of(const std::string& label, int64_t n, Stored stored, int64_t num_steps,
           Masters masters = Masters::kSplitFirst) {
  return {label, [=](Trial& t) { declare(t, n, stored, num_steps, masters); }};
}

Variants hard() {
  Variants variants;
  for (int64_t n : {1, 3, 63, 64, 65, 130, 1024, 5003, 0}) {
    variants.push_back(of(concat(n, " numbers, 30 steps"), n, {kWide, kWide}, 30));
    variants.push_back(of(concat(n, " numbers, bf16 moments"), n, {kBf16, kWide}, 1));
    variants.push_back(of(concat(n, " numbers, bf16 gradient"), n, {kWide, kBf16}, 30));
    variants.push_back(of(concat(n, " numbers, bf16 moments and gradient"), n, {kBf16, kBf16}, 1));
    variants.push_back(coded(concat(n, " numbers, moments in a byte"), n, n % 2 ? kBf16 : kWide, 5));
  }
  return variants;
}

Variants checked(const Sizes&) {
  return {of("5003 numbers", 5003, {kWide, kWide}, 2), coded("5003 numbers, moments in a byte", 5003, kBf16, 3)};
}

Variants timed(const Sizes& s) {
  const auto timed = [&](const char* what, Stored stored) {
    return of(concat(s.shard_elements, what), s.shard_elements, stored, 1, Masters::kAsTheyStart);
  };
  return {timed(", moments wide", {kWide, kWide}), timed(", moments BF16", {kBf16, kWide}),
          timed(", moments and gradient BF16", {kBf16, kBf16}),
          coded(concat(s.shard_elements, ", moments in a byte, gradient BF16"), s.shard_elements, kBf16, 1,
                Masters::kAsTheyStart)};
}

}  // namespace

OperatorCase adamw_case() { return {"adamw", hard, checked, timed, only_implementation}; }

}  // namespace braid::cases
