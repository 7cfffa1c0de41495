#include "kernels/gated_rms_norm.h"

#include "kernels/cases/operator_case.h"

namespace braid::cases {
namespace {

using enum Storage;

constexpr Closeness kForward = {.cpu = {2e-7, 1e-4}};
constexpr Closeness kBackward = {.cpu = {3e-7, 1e-4}};
constexpr Closeness kWeightSum = {.bf16 = kUsual.f32, .cpu = {3e-6, 1e-4}};

void declare(Trial& t, int64_t N, const GdnDims& d, double eps) {
  const Shape heads{N, d.value_heads, d.value_dim}, columns{N, d.qkvz_columns()};
  const Var o = t.input("o", heads, normal(2)), qkvz = t.input("qkvz", columns, normal(3));
  const Var weight = t.input("weight", {d.value_dim}, normal(0.5, 1), kWide);
  const Var y = t.output("y", heads, kActivation, kForward);
  const Var rstd = t.output("rstd", {N, d.value_heads}, kWide, kWideSum);
  t.forward("gated_rms_norm_forward", {y, rstd},
            [=](Context& ctx) { gated_rms_norm_forward(ctx, y, rstd, o, qkvz, weight, eps, d); },
            {.bytes = 3 * bytes_of(o)});

  const Var d_y = t.input("d_y", heads, normal()), d_o = t.output("d_o", heads, kActivation, kBackward);
  const Var d_qkvz = t.part("d_qkvz", columns, kActivation, kBackward);  // the z columns
  const Var d_weight = t.sum("d_weight", {d.value_dim}, kWide, kWeightSum);
  t.backward("gated_rms_norm_backward", {d_o, d_qkvz, d_weight},
             [=](Context& ctx) { gated_rms_norm_backward(ctx, d_o, d_qkvz, d_weight, d_y, o, rstd, qkvz, weight, d); },
             {.bytes = 5 * bytes_of(o)});
  t.loss(y, d_y);
  if (d.value_dim > 1) t.gradient(o, d_o);  // else it is a difference of almost equal numbers, the size of eps
  t.gradient(qkvz, d_qkvz);
  t.gradient(weight, d_weight);
}

Variants hard() {
  Variants variants;
  struct Size {
    int64_t N;
    GdnDims dims;
  };
  // Heads of 128 elements as in the released model, also fewer heads than a block has rows, one or several tiles of
  // tokens; heads of other sizes; heads of 128 whose gates lie where no vector can be read.
  for (const auto& [N, d] : {Size{3, {2, 4, 3, 5, 4}},
                             {1, {16, 32, 128, 128, 4}},
                             {70, {16, 32, 128, 128, 4}},
                             {33, {1, 3, 128, 128, 4}},
                             {40, {2, 10, 64, 128, 4}},
                             {70, {2, 4, 3, 5, 4}},
                             {9, {1, 2, 64, 200, 4}},
                             {50, {3, 3, 5, 128, 4}},
                             {63, {1, 1, 8, 64, 4}},
                             {64, {1, 1, 8, 63, 4}},
                             {65, {1, 1, 8, 65, 4}},
                             {130, {1, 1, 8, 1, 4}},
                             {0, {2, 4, 3, 5, 4}}})
    variants.push_back({concat(N, " tokens, ", d.value_heads, " heads of ", d.key_dim, " and ", d.value_dim),
                        [=](Trial& t) { declare(t, N, d, 1e-6); }});
  return variants;
}

Variants checked(const Sizes& s) {
  if (!s.gdn) return {};
  return {{concat("heads of ", s.gdn->value_dim), [=](Trial& t) { declare(t, kCheckedTokens, *s.gdn, s.eps); }}};
}
Variants timed(const Sizes& s) {
  if (!s.gdn) return {};
  return {{concat(s.tokens(), " x ", s.gdn->value_heads, " x ", s.gdn->value_dim),
           [=](Trial& t) { declare(t, s.tokens(), *s.gdn, s.eps); }}};
}

Implementation implementation(Context& ctx, const Sizes& s) {
  return gated_rms_norm_implementation(ctx, s.activation, *s.gdn);
}

}  // namespace

OperatorCase gated_rms_norm_case() { return {"gated_rms_norm", hard, checked, timed, implementation}; }

}  // namespace braid::cases
