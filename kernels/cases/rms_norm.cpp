#include "kernels/rms_norm.h"

#include <algorithm>

#include "kernels/cases/operator_case.h"

namespace braid::cases {
namespace {

using enum Storage;

void declare_norm(Trial& t, int64_t N, int64_t C, double eps) {
  const Var x = t.input("x", {N, C}, normal(3)), weight = t.input("weight", {C}, normal(0.3), kWide);
  const Var y = t.output("y", {N, C}), rstd = t.output("rstd", {N}, kWide, kWideSum);
  t.forward("rms_norm_forward", {y, rstd}, [=](Context& ctx) { rms_norm_forward(ctx, y, rstd, x, weight, eps); },
            {.bytes = bytes_of(x, y)});

  const Var d_y = t.input("d_y", {N, C}, normal());
  // With one column d_x is a difference of almost equal numbers, the size of eps.
  Closeness of_d_x = kUsual;
  if (C == 1) of_d_x.f32.absolute = of_d_x.bf16.absolute = of_d_x.cpu.absolute = 1e-2;
  const Var d_x = t.output("d_x", {N, C}, kActivation, of_d_x), d_weight = t.sum("d_weight", {C}, kWide, kWideSum);
  t.backward("rms_norm_backward", {d_x, d_weight},
             [=](Context& ctx) { rms_norm_backward(ctx, d_x, d_weight, d_y, x, weight, rstd); },
             {.bytes = bytes_of(d_y, x, d_x)});
  t.loss(y, d_y);
  if (C > 1) t.gradient(x, d_x);
  t.gradient(weight, d_weight);
}

// Sixteenths, and so few that a sum of two is a bf16 number: nothing but the norm itself is rounded.
const Values kSixteenths = edited(normal(3), [](Tensor x) {
  for (int64_t i = 0; i < x.numel(); ++i) {
    double& value = x.data<double>()[i];
    value = std::clamp(std::round(value * 16) / 16, -7.5, 7.5);
  }
});

void declare_add_norm(Trial& t, int64_t N, int64_t C, double eps, const Values& numbers, const Closeness& of_rstd) {
  const Var x = t.input("x", {N, C}, numbers), delta = t.input("delta", {N, C}, numbers);
  const Var weight = t.input("weight", {C}, normal(0.3), kWide);
  const Var y = t.output("y", {N, C}), sum = t.output("sum", {N, C}), rstd = t.output("rstd", {N}, kWide, of_rstd);
  t.forward("add_rms_norm_forward", {y, sum, rstd},
            [=](Context& ctx) { add_rms_norm_forward(ctx, y, sum, rstd, x, delta, weight, eps); },
            {.bytes = bytes_of(x, delta, y, sum)});

  const Var d_y = t.input("d_y", {N, C}, normal()), d_sum = t.in_out("d_sum", {N, C}, normal());
  const Var d_weight = t.sum("d_weight", {C}, kWide, kWideSum);
  t.backward("add_rms_norm_backward", {d_sum, d_weight},
             [=](Context& ctx) { add_rms_norm_backward(ctx, d_sum, d_weight, d_y, sum, weight, rstd); },
             {.bytes = bytes_of(d_y, sum, d_sum, d_sum)});
  t.loss(y, d_y);
  t.loss(sum, d_sum);
  if (C > 1) {
    t.gradient(x, d_sum);
    t.gradient(delta, d_sum);
  }
  t.gradient(weight, d_weight);

  const Var in_place = t.in_out("x that becomes the sum", x), y_too = t.output("y in place", {N, C});
  const Var rstd_too = t.output("rstd in place", {N}, kWide, of_rstd);
  t.forward("add_rms_norm_forward", {y_too, in_place, rstd_too},
            [=](Context& ctx) { add_rms_norm_forward(ctx, y_too, in_place, rstd_too, in_place, delta, weight, eps); });
  t.same_bits(in_place, sum);
  t.same_bits(y_too, y);
  t.same_bits(rstd_too, rstd);
}

Variants both(const std::string& label, int64_t N, int64_t C, double eps, const Values& sum_numbers = normal(),
              const Closeness& of_rstd = kUsual) {
  return {{label, [=](Trial& t) { declare_norm(t, N, C, eps); }},
          {label + ", with addition", [=](Trial& t) { declare_add_norm(t, N, C, eps, sum_numbers, of_rstd); }}};
}

Variants hard() {
  Variants variants;
  auto add = [&](const Variants& more) { variants.insert(variants.end(), more.begin(), more.end()); };
  // Rows that registers hold whole or in part, longer ones, ones that do not allow vectors; more than a tile of rows.
  for (const auto& [N, C] : {std::pair<int64_t, int64_t>{3, 8},
                             {1, 2048},
                             {70, 2048},
                             {33, 8},
                             {100, 264},
                             {5, 4096},
                             {600, 37},
                             {3, 5001},
                             {1100, 1},
                             {63, 40},
                             {64, 64},
                             {65, 130},
                             {130, 63},
                             {0, 8}})
    add(both(concat(N, " x ", C), N, C, 1e-6, kSixteenths, kWideSum));
  add(both("100 x 264, rounded sums", 100, 264, 1e-6));
  return variants;
}

Variants checked(const Sizes& s) { return both(concat("width ", s.hidden), kCheckedTokens, s.hidden, s.eps); }
Variants timed(const Sizes& s) { return both(concat(s.tokens(), " x ", s.hidden), s.tokens(), s.hidden, s.eps); }

}  // namespace

OperatorCase rms_norm_case() { return {"rms_norm", hard, checked, timed, hidden_row_implementation}; }

}  // namespace braid::cases
