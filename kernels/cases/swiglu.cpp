#include "kernels/swiglu.h"

#include "kernels/cases/operator_case.h"

namespace braid::cases {
namespace {

using enum Storage;

constexpr Closeness kClose = {.cpu = {1e-6, 1e-4}};

struct Numbers {
  Values a = normal(3), b = normal(), gate = normal();
  double gradient_error = 1e-9;
};

void declare(Trial& t, int64_t N, int64_t F, const Numbers& numbers) {
  const Var a = t.input("a", {N, F}, numbers.a), b = t.input("b", {N, F}, numbers.b);
  const Var gate = t.input("gate", {N, 1}, numbers.gate, kWide), h = t.output("h", {N, F}, kActivation, kClose);
  t.forward("swiglu_forward", {h}, [=](Context& ctx) { swiglu_forward(ctx, h, a, b, gate); },
            {.bytes = bytes_of(a, b, h)});

  const Var d_h = t.input("d_h", {N, F}, normal()), d_a = t.output("d_a", {N, F}, kActivation, kClose);
  const Var d_b = t.output("d_b", {N, F}, kActivation, kClose),
            d_gate = t.output("d_gate", {N, 1}, kActivation, kClose);
  t.backward("swiglu_backward", {d_a, d_b, d_gate},
             [=](Context& ctx) { swiglu_backward(ctx, d_a, d_b, d_gate, d_h, a, b, gate); },
             {.bytes = bytes_of(d_h, a, b, d_a, d_b)});
  t.loss(h, d_h);
  t.gradient_error(numbers.gradient_error);
  t.gradient(a, d_a);
  t.gradient(b, d_b);
  t.gradient(gate, d_gate);

  const Var in_place = t.in_out("d_h that becomes d_a", d_h, kClose),
            d_b_too = t.output("d_b in place", {N, F}, kActivation, kClose);
  const Var d_gate_too = t.output("d_gate in place", {N, 1}, kActivation, kClose);
  t.backward("swiglu_backward", {in_place, d_b_too, d_gate_too},
             [=](Context& ctx) { swiglu_backward(ctx, in_place, d_b_too, d_gate_too, in_place, a, b, gate); });
  t.same_bits(in_place, d_a);
  t.same_bits(d_b_too, d_b);
  t.same_bits(d_gate_too, d_gate);
}

Variant of(const std::string& label, int64_t N, int64_t F, const Numbers& numbers = {}) {
  return {label, [=](Trial& t) { declare(t, N, F, numbers); }};
}

Variants hard() {
  Variants variants;
  // One row; the real width; rows shorter than a warp reads at a time, longer, and without vectors.
  for (const auto& [N, F] : {std::pair<int64_t, int64_t>{3, 7},
                             {1, 512},
                             {300, 512},
                             {40, 8},
                             {30, 264},
                             {9, 1416},
                             {50, 37},
                             {7, 1},
                             {63, 64},
                             {64, 65},
                             {65, 63},
                             {130, 130},
                             {20, 100},
                             {0, 8}})
    variants.push_back(of(concat(N, " x ", F), N, F));
  variants.push_back(
      of("far from zero", 1, 6,
         {edited(normal(), with_values({-1e4, 1e4, -90, 90, -800, 800})), constant(1), constant(1e4), 1e-8}));
  return variants;
}

Variants checked(const Sizes& s) {
  return {of(concat("width ", s.shared_width), kCheckedTokens, s.shared_width, {.a = normal()})};
}
Variants timed(const Sizes& s) {
  return {of(concat(s.tokens(), " x ", s.shared_width), s.tokens(), s.shared_width, {.a = normal()})};
}

Implementation implementation(Context& ctx, const Sizes& s) {
  return row_pass_implementation(ctx, s.activation, s.shared_width);
}

}  // namespace

OperatorCase swiglu_case() { return {"swiglu", hard, checked, timed, implementation}; }

}  // namespace braid::cases
