#include "kernels/muon.h"

#include <algorithm>

#include "kernels/cases/operator_case.h"
#include "kernels/split_weights.h"

namespace braid::cases {
namespace {

using enum Storage;

// The activation dtype is that of the products and of the weights beside their low bits. The iteration with every
// result rounded to bf16 is 0.010 to 0.017 off in relative RMS on matrices of normal numbers from 1 x 7 to 256 x 1024,
// and 0.13 at worst.
constexpr Tolerance kProducts = {2.5e-2, 0.3};
constexpr Closeness kIteration = {.f32 = {5e-5, 1e-3}, .bf16 = kProducts, .cpu = {5e-5, 1e-3}};
// A weight of about 1 changes by about lr * update_rms.
constexpr double kLr = 0.1, kUpdateRms = 0.2;
constexpr Closeness kNewWeight = {.bf16 = {1e-3, 1e-2}};

double products_of(double M, double N) {
  const double m = std::min(M, N), n = std::max(M, N);
  return 5 * (2 * m * m * n + 2 * m * m * m + 2 * m * m * n);
}

void declare_iteration(Trial& t, int64_t M, int64_t N) {
  const Var x = t.in_out("x", {M, N}, normal(), kActivation, kIteration);
  t.forward("newton_schulz", {x}, [=](Context& ctx) { newton_schulz(ctx, x); },
            {.bytes = 2 * bytes_of(x), .flop = products_of(double(M), double(N))});
}

void declare_update(Trial& t, Shape shape, MuonRows rows, Storage narrow) {
  const bool is_narrow = narrow == kBf16;
  const Storage of_gradient = t.activation() == DType::kBF16 ? narrow : kWide;
  const Var gradient = t.input("gradient", shape, normal(1e-3), of_gradient);
  const Var weight = t.in_out("weight", shape, normal()), low = t.low_bits("low", weight);
  const Var momentum = t.in_out("momentum", shape, normal(1e-3), narrow,
                                is_narrow ? Closeness{.f32 = kUsual.bf16, .cpu = {2e-6, 1e-4}} : kWideSum);
  const Var start = t.input("start", shape, normal(), kWide);
  const Var master = t.output("master", shape, kWide, kNewWeight);
  const double share = double(rows.end - rows.begin) / double(shape[1]);
  const double M = double(shape[0] * (rows.end - rows.begin)), N = double(shape[2]);
  const DType activation = t.activation();
  t.forward(
      "muon_update", {weight, low, momentum, master},
      [=](Context& ctx) {
        split_weights(ctx, weight, low, start);
        muon_update(ctx, {weight, momentum, low}, gradient, rows,
                    {.lr = kLr,
                     .momentum = 0.9,
                     .update_rms = kUpdateRms,
                     .weight_decay = 0.1,
                     .gradient_scale = 0.7,
                     .products = ctx.on_cuda() ? activation : wide_dtype(weight.dtype())});
        join_weights(ctx, master, weight, low);
      },
      {.bytes = share * bytes_of(weight, weight, low, low, momentum, momentum, gradient), .flop = products_of(M, N)});
}

Variant iteration(int64_t M, int64_t N) {
  return {concat(M, " x ", N), [=](Trial& t) { declare_iteration(t, M, N); }};
}
Variant update(Shape shape, MuonRows rows, Storage narrow = kWide) {
  return {concat("rows ", rows.begin, " to ", rows.end, " of ", shape.to_string(),
                 narrow == kBf16 ? ", bf16 momentum and gradient" : ""),
          [=](Trial& t) { declare_update(t, shape, rows, narrow); }};
}

Variants hard() {
  Variants variants;
  for (const auto& [M, N] : {std::pair<int64_t, int64_t>{1, 7}, {5, 3}, {63, 64}, {65, 130}, {130, 65}, {128, 512}})
    variants.push_back(iteration(M, N));
  for (const Storage narrow : {kWide, kBf16}) {
    variants.push_back(update({1, 96, 256}, {0, 96}, narrow));
    variants.push_back(update({1, 128, 40}, {64, 128}, narrow));
    variants.push_back(update({4, 32, 100}, {8, 24}, narrow));
    variants.push_back(update({3, 5, 7}, {1, 3}, narrow));
  }
  return variants;
}

Variants checked(const Sizes& s) {
  if (!s.muon) return {};
  return {iteration(65, 130), update({2, 65, 130}, {1, 65})};
}

Variants timed(const Sizes& s) {
  return {iteration(s.expert_width, s.hidden), update({1, s.expert_width, s.hidden}, {0, s.expert_width}),
          update({1, 2 * s.hidden, s.hidden}, {0, 2 * s.hidden})};
}

}  // namespace

OperatorCase muon_case() { return {"muon", hard, checked, timed, only_implementation}; }

}  // namespace braid::cases
