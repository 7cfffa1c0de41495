#include "kernels/lm_head_loss.h"

#include <algorithm>

#include "kernels/cases/operator_case.h"

namespace braid::cases {
namespace {

using enum Storage;
using Targets = std::vector<int64_t>;

constexpr double kScale = 0.3;

void declare(Trial& t, const Targets& ids, int64_t B, int64_t C, int64_t V, double weight_stddev) {
  const int64_t N = std::ssize(ids);
  // In bf16 the logits of a token are rounded, which moves its loss by about 3e-3 either way; all halved, because of a
  // single number twice the error is allowed.
  const double of_bf16 = 0.5e-3 + 1.5e-3 / std::sqrt(double(std::max<int64_t>(N / B, 1)));
  const Closeness of_loss = {{1e-6, 2e-6}, {of_bf16, 2 * of_bf16}, {0.5e-6, 1e-6}};
  // A logit in bf16 is off by up to 2^-8 of itself, and with it every probability. The worst element of d_weight is one
  // of the few rows of targets, which are far above the RMS of all rows.
  const Closeness close = {{5e-6, 2e-4}, {6e-3, 0.25, 0x1p-7}, {2e-6, 2e-4}};
  const Var hidden = t.input("hidden", {N, C}, normal()), weight = t.input("weight", {V, C}, normal(weight_stddev));
  const Var targets = t.input("targets", {N}, ids), loss_sums = t.output("loss_sums", {B}, kF64, of_loss);
  const double product = 2.0 * double(N) * double(V) * double(C);
  t.forward("lm_head_loss_forward", {loss_sums},
            [=](Context& ctx) { lm_head_loss_forward(ctx, loss_sums, hidden, weight, targets); },
            {.bytes = bytes_of(hidden, weight), .flop = product});

  const Var scale = t.input("scale", {B}, constant(kScale), kF64),
            again = t.output("loss_sums with gradients", {B}, kF64, of_loss);
  const Var d_hidden = t.output("d_hidden", {N, C}, kActivation, close);
  const Var d_weight = t.sum("d_weight", {V, C}, kWide, close, normal(1e-3));
  t.backward("lm_head_loss_forward_backward", {again, d_hidden, d_weight},
             [=](Context& ctx) {
               lm_head_loss_forward_backward(ctx, again, d_hidden, d_weight, hidden, weight, targets, kScale);
             },
             {.bytes = bytes_of(hidden, weight, d_hidden, d_weight, d_weight), .flop = 3 * product});
  t.loss(loss_sums, scale);
  t.gradient_error(1e-7);
  t.gradient(hidden, d_hidden);
  t.gradient(weight, d_weight);
  t.same_bits(again, loss_sums);
}

// Every seventh token has no target.
Targets some_targets(int64_t N, int64_t V) {
  Targets targets;
  for (int64_t n = 0; n < N; ++n) targets.push_back(n % 7 == 3 ? -1 : (n * 31 + 5) % V);
  return targets;
}

// Logits are numbers of about 1.5.
Variant of(const std::string& label, const Targets& targets, int64_t C, int64_t V, int64_t B = 1) {
  return {label, [=](Trial& t) { declare(t, targets, B, C, V, 1.5 / std::sqrt(double(C))); }};
}

Variants hard() {
  Variants variants;
  for (const auto& [N, C, V] : {std::array<int64_t, 3>{5, 4, 6},
                                {1, 3, 5},
                                {40, 8, 260},
                                {129, 96, 1001},
                                {60, 64, 40000},
                                {9000, 8, 72},    // several chunks of a GPU
                                {7, 16, 151936},  // the real vocabulary
                                {2100, 4, 37},    // as many tokens as a chunk of the CPU may have
                                {2048, 4, 37},    // whole chunks
                                {150, 2, 70000},  // as many logits as a chunk may have
                                {63, 64, 65},
                                {64, 65, 63},
                                {65, 63, 64},
                                {130, 1, 1},
                                {0, 8, 9}})
    variants.push_back(of(concat(N, " x ", C, ", vocabulary ", V), some_targets(N, V), C, V));
  variants.push_back(of("no targets", Targets(5, -1), 16, 40));
  for (const auto& [B, T] : {std::array<int64_t, 2>{3, 5}, {40, 1}, {3, 3000}})  // rows that chunks cut, too
    variants.push_back(of(concat(B, " rows of ", T), some_targets(B * T, 72), 8, 72, B));
  return variants;
}

Variants checked(const Sizes& s) {
  const int64_t V = std::min<int64_t>(s.vocabulary, 1000 + s.vocabulary % 8);
  return {of(concat("width ", s.hidden), some_targets(kCheckedTokens, V), s.hidden, V)};
}
Variants timed(const Sizes& s) {
  Targets targets;
  for (int64_t n = 0; n < s.tokens(); ++n) targets.push_back(n * 7919 % s.vocabulary);
  return {{concat(s.tokens(), " x ", s.hidden, ", vocabulary ", s.vocabulary),
           [=](Trial& t) { declare(t, targets, s.rows, s.hidden, s.vocabulary, 0.02); }}};
}

Implementation implementation(Context& ctx, const Sizes& s) {
  return row_pass_implementation(ctx, s.activation, s.vocabulary);
}

}  // namespace

OperatorCase lm_head_loss_case() { return {"lm_head_loss", hard, checked, timed, implementation}; }

}  // namespace braid::cases
