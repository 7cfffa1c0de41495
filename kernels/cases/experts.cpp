#include "kernels/experts.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "kernels/cases/operator_case.h"

namespace braid::cases {
namespace {

using enum Storage;
using Rows = std::vector<int64_t>;  // of each expert

// Weights of experts without rows are no numbers: nobody may read them.
Values weights_of(const Rows& rows, double stddev) {
  return edited(normal(stddev), [rows](Tensor w) {
    for (int64_t e = 0; e < w.dim(0); ++e)
      if (rows[e] == 0) nan_from_row(0)(w.rows(e, e + 1));
  });
}

void make_positive(Tensor x) {
  for (int64_t i = 0; i < x.numel(); ++i) x.data<double>()[i] = std::fabs(x.data<double>()[i]);
}

void declare(Trial& t, const Rows& rows, int64_t C, int64_t F, int64_t spare, const Values& numbers,
             const Values& gate_up_values, const Values& down_values) {
  const int64_t El = std::ssize(rows), used = std::accumulate(rows.begin(), rows.end(), int64_t{0});
  const int64_t R = used + t.spare_rows(spare);
  const Values in_use = spare > 0 ? edited(normal(), nan_from_row(used)) : numbers;
  const Values gates = spare > 0 ? edited(normal(0.2, 0.5), nan_from_row(used)) : normal(0.2, 0.5);
  const Var rows_per_expert = t.input("rows_per_expert", {El}, rows);
  const Var x = t.input("x", {R, C}, in_use), row_gate = t.input("row_gate", {R}, gates, kWide);
  const Var gate_up = t.input("gate_up", {El, 2 * F, C}, gate_up_values),
            down = t.input("down", {El, C, F}, down_values);
  const ExpertWeights weights = {gate_up, down};
  const Var out = t.output("out", {R, C}), gate_up_out = t.output("gate_up_out", {R, 2 * F});
  const double product = 2.0 * double(used) * double(3 * F * C);
  t.forward("experts_forward", {out, gate_up_out},
            [=](Context& ctx) { experts_forward(ctx, out, gate_up_out, x, row_gate, rows_per_expert, weights); },
            {.bytes = bytes_of(gate_up, down, x, gate_up_out, out), .flop = product});

  const Var again = t.output("gate_up_out, made again", {R, 2 * F});
  t.forward("experts_forward", {again},
            [=](Context& ctx) { experts_forward(ctx, {}, again, x, row_gate, rows_per_expert, weights); },
            {.bytes = bytes_of(gate_up, x, again), .flop = product * 2 / 3, .by = "without down"});
  t.same_bits(gate_up_out, again);

  const Var d_out = t.input("d_out", {R, C}, in_use), d_x = t.output("d_x", {R, C});
  const Var d_row_gate = t.output("d_row_gate", {R}, kWide), d_gate_up = t.sum("d_gate_up", gate_up.shape());
  const Var d_down = t.sum("d_down", down.shape());
  const ExpertWeights d_weights = {d_gate_up, d_down};
  const Var h = t.output("h", {R, F}), d_gate_up_out = t.output("d_gate_up_out", {R, 2 * F});
  const ExpertHidden hidden = {h, d_gate_up_out};
  t.backward("experts_backward_input", {d_x, d_row_gate, h, d_gate_up_out},
             [=](Context& ctx) {
               experts_backward_input(ctx, d_x, d_row_gate, hidden, d_out, row_gate, gate_up_out, rows_per_expert,
                                      weights);
             },
             {.bytes = bytes_of(gate_up, down, d_out, gate_up_out, d_x, h, d_gate_up_out), .flop = product});
  t.backward("experts_backward_weight", {d_gate_up, d_down},
             [=](Context& ctx) { experts_backward_weight(ctx, d_weights, hidden, d_out, x, rows_per_expert); },
             {.bytes = bytes_of(d_gate_up, d_gate_up, d_down, d_down, d_out, x, h, d_gate_up_out),
              .flop = product,
              .by = "added"});
  const Var new_gate_up = t.output("d_gate_up, written", gate_up.shape(), kWide);
  const Var new_down = t.output("d_down, written", down.shape(), kWide);
  const ExpertWeights new_weights = {new_gate_up, new_down};
  t.backward("experts_backward_weight", {new_gate_up, new_down},
             [=](Context& ctx) {
               experts_backward_weight(ctx, new_weights, hidden, d_out, x, rows_per_expert, Accumulate::kNo);
             },
             {.bytes = bytes_of(d_gate_up, d_down, d_out, x, h, d_gate_up_out), .flop = product, .by = "written"});
  // Rounded once where they are written, and where they are added before and after.
  const Storage narrow = t.activation() == DType::kBF16 ? kBf16 : kWide;
  const Var narrow_gate_up = t.output("d_gate_up, bf16", gate_up.shape(), narrow);
  const Var narrow_down = t.output("d_down, bf16", down.shape(), narrow);
  const ExpertWeights narrow_weights = {narrow_gate_up, narrow_down};
  t.backward("experts_backward_weight", {narrow_gate_up, narrow_down},
             [=](Context& ctx) {
               experts_backward_weight(ctx, narrow_weights, hidden, d_out, x, rows_per_expert, Accumulate::kNo);
             },
             {.bytes = bytes_of(narrow_gate_up, narrow_down, d_out, x, h, d_gate_up_out),
              .flop = product,
              .by = "bf16, written"});
  const Var sum_gate_up = t.sum("d_gate_up, added in bf16", gate_up.shape(), narrow);
  const Var sum_down = t.sum("d_down, added in bf16", down.shape(), narrow);
  const ExpertWeights sum_weights = {sum_gate_up, sum_down};
  t.backward("experts_backward_weight", {sum_gate_up, sum_down},
             [=](Context& ctx) { experts_backward_weight(ctx, sum_weights, hidden, d_out, x, rows_per_expert); },
             {.bytes = bytes_of(sum_gate_up, sum_gate_up, sum_down, sum_down, d_out, x, h, d_gate_up_out),
              .flop = product,
              .by = "bf16, added"});
  t.loss(out, d_out);
  t.gradient(x, d_x);
  t.gradient(row_gate, d_row_gate);
  t.gradient(gate_up, d_gate_up);
  t.gradient(down, d_down);
  t.gradient(gate_up, new_gate_up);
  t.gradient(down, new_down);
}

Variant of(const std::string& label, const Rows& rows, int64_t C, int64_t F, int64_t spare) {
  return {label, [=](Trial& t) {
            declare(t, rows, C, F, spare, normal(), weights_of(rows, 1 / std::sqrt(double(C))),
                    weights_of(rows, 1 / std::sqrt(double(F))));
          }};
}

Variants hard() {
  Variants variants;
  auto add = [&](const Rows& rows, int64_t C, int64_t F, int64_t spare) {
    std::string text;
    for (int64_t n : rows) text += concat(text.empty() ? "" : ", ", n);
    variants.push_back(of(concat(text, " rows of ", C, ", F ", F, ", ", spare, " spare"), rows, C, F, spare));
  };
  add({2, 0, 3, 1}, 5, 4, 0);
  // One row of few numbers: none of its sums may cancel, or bf16's rounding is most of what is left.
  variants.push_back({"a positive row of 12, F 7", [](Trial& t) {
                        const Values positive = edited(normal(), make_positive);
                        declare(t, {1}, 12, 7, 0, positive, positive, positive);
                      }});
  for (const Rows& rows : {Rows{1}, {3, 0, 5, 1}, {0, 300, 0, 7}, {128, 129, 1}, {0, 0, 4}}) {
    if (rows.size() > 1) add(rows, 12, 7, 0);
    add(rows, 75, 33, 3);
    add(rows, 150, 70, 200);
  }
  for (const Rows& rows :
       {Rows{1}, {3, 0, 5, 1}, {0, 300, 0, 7}, {128, 129, 1}, {0, 0, 4}, {127, 256}, {63, 64, 65, 130}}) {
    add(rows, 8, 8, 0);
    add(rows, 72, 40, 3);
    add(rows, 128, 64, 0);
    add(rows, 264, 200, 130);
  }
  add({200, 0, 31, 129}, 150, 70, 0);
  // More than a block, and two.
  add({3, kExpertBlockRows + 1, 0}, 8, 8, 5);
  add({2 * kExpertBlockRows + 130, 4}, 16, 8, 0);
  add({150, 0, 1, 64, 257}, 2048, 512, 40);
  Rows many(1500);
  for (size_t e = 0; e < many.size(); ++e) many[e] = e % 9 == 4 ? 130 : int64_t(e % 3);
  variants.push_back(of("1500 experts", many, 16, 8, 77));
  variants.push_back(of("no rows at all", {0, 0, 0}, 16, 8, 5));
  return variants;
}

Variants checked(const Sizes& s) {
  return {of(concat("widths ", s.hidden, " and ", s.expert_width), {0, 1, 65, 0, 130}, s.hidden, s.expert_width, 3)};
}

// All experts, and those of a rank of four, which get as many rows together; and those of a rank of eight that takes an
// eighth of the tokens, as deep models do. Nearly even loads.
Variants timed(const Sizes& s) {
  Variants variants;
  const int64_t all_rows = s.tokens() * s.experts_per_token, C = s.hidden, F = s.expert_width;
  const std::pair<int64_t, int64_t> shapes[] = {
      {s.experts / 4, all_rows}, {s.experts, all_rows}, {s.experts / 8, all_rows / 8}};
  for (const auto& [experts, R] : shapes) {
    const int64_t E = std::max<int64_t>(1, experts);
    Rows rows;
    for (int64_t e = 0; e < E; ++e) rows.push_back(R * (e + 1) / E - R * e / E);
    for (int64_t e = 0; e + 1 < E; e += 2) {  // uneven as random routing is
      const int64_t moved = std::min(rows[e], int64_t(std::sqrt(double(rows[e]))) * (e % 3));
      rows[e] -= moved;
      rows[e + 1] += moved;
    }
    variants.push_back({concat("E ", E, ", ", R, " x ", C, ", F ", F),
                        [=](Trial& t) { declare(t, rows, C, F, 0, normal(), normal(0.02), normal(0.02)); }});
  }
  return variants;
}

Implementation implementation(Context& ctx, const Sizes& s) {
  const int64_t El = s.local_experts, C = s.hidden, F = s.expert_width;
  return experts_implementation(ctx,
                                {shaped(ctx, s.activation, {El, 2 * F, C}), shaped(ctx, s.activation, {El, C, F})});
}

}  // namespace

OperatorCase experts_case() { return {"experts", hard, checked, timed, implementation}; }

}  // namespace braid::cases
