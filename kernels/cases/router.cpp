#include "kernels/router.h"

#include "kernels/cases/operator_case.h"

namespace braid::cases {
namespace {

using enum Storage;

constexpr Closeness kStatistic = {{1e-6, 1e-5}, {1e-6, 1e-5}, {1e-6, 1e-4}};  // fp32 arithmetic for every activation

struct Numbers {
  Values logits = normal(1.5);
  double gate = 1, prob = 1, z_weight = 0.01;  // sizes of the gradients that arrive, so that each can be alone
  bool differentiable = false;                 // no step changes the choice
};

void declare(Trial& t, const Segments& documents, int64_t E, int64_t K, GateNorm norm, const Numbers& numbers) {
  const Segments segments = t.segments(documents);
  const int64_t N = segments.num_tokens(), B = segments.num_rows;
  const Var logits = t.input("logits", {N, E}, numbers.logits, kWide);
  const Var expert_id = t.output("expert_id", {N, K}, kI32), gate = t.output("gate", {N, K}, kWide, kStatistic);
  const Var prob = t.output("prob", {N, E}, kWide, kStatistic), lse = t.output("lse", {N}, kWide, kStatistic);
  const Var counts = t.output("counts", {B, E}, kI64), prob_sum = t.output("prob_sum", {B, E}, kF64, kStatistic);
  const Var z_sum = t.output("z_sum", {B}, kF64, kStatistic);
  const RouterOutputs out = {expert_id, gate, prob, lse, counts, prob_sum, z_sum};
  t.forward("router_forward", {expert_id, gate, prob, lse, counts, prob_sum, z_sum},
            [=](Context& ctx) { router_forward(ctx, out, logits, segments, norm); }, {.bytes = 2 * bytes_of(logits)});

  // Of probabilities that are 1, nothing is left but rounding.
  Closeness of_entropy = {{1e-5, 2e-5}, {1e-5, 2e-5}, {1e-5, 2e-5}};
  if (E == 1) of_entropy.f32.absolute = of_entropy.bf16.absolute = of_entropy.cpu.absolute = 2e-4;
  const Var entropy = t.output("entropy", {1}, kF64, of_entropy);
  t.forward("router_entropy", {entropy}, [=](Context& ctx) { router_entropy(ctx, entropy, logits, out, segments); },
            {.bytes = bytes_of(logits, prob)});

  const Var d_gate = t.input("d_gate", {N, K}, normal(numbers.gate), kWide);
  const Var d_prob = t.input("d_prob", {B, E}, normal(numbers.prob), kF64);
  const Var d_z_sum = t.input("d_z_sum", {B}, constant(numbers.z_weight), kF64);
  // One expert: nothing but the z-loss is left of terms that cancel.
  Closeness of_d_logits = {.cpu = {1e-6, 1e-4}};
  if (E == 1) of_d_logits.f32.absolute = of_d_logits.bf16.absolute = of_d_logits.cpu.absolute = 1e-4;
  const Var d_logits = t.output("d_logits", {N, E}, kActivation, of_d_logits);
  const double z_weight = numbers.z_weight;
  t.backward("router_backward", {d_logits},
             [=](Context& ctx) { router_backward(ctx, d_logits, d_gate, d_prob, z_weight, out, segments, norm); },
             {.bytes = bytes_of(logits, d_logits)});
  if (!numbers.differentiable) return;
  t.loss(gate, d_gate);
  t.loss(prob_sum, d_prob);
  t.loss(z_sum, d_z_sum);
  t.gradient(logits, d_logits);
}

Variant of(const std::string& label, const Segments& documents, int64_t E, int64_t K, GateNorm norm,
           const Numbers& numbers) {
  return {label, [=](Trial& t) { declare(t, documents, E, K, norm, numbers); }};
}

// Multiples of 1/8: many ties, and what is not equal is far enough apart for fp32; some tokens prefer no expert at all.
const Values kWithTies = edited(normal(1.5), [](Tensor logits) {
  const int64_t E = logits.dim(1);
  for (int64_t i = 0; i < logits.numel(); ++i) {
    double& x = logits.data<double>()[i];
    x = i / E % 10 == 0 ? 0 : std::round(x * 8) / 8;
  }
});
// Far enough from each other that no small step changes the choice.
const Values kFarApart = edited(normal(), [](Tensor logits) {
  const int64_t E = logits.dim(1);
  for (int64_t i = 0; i < logits.numel(); ++i)
    logits.data<double>()[i] = 0.4 * double((i % E * 3 + i / E) % E) - 1 + 0.05 * double(i / E);
});

Variants hard() {
  Variants variants;
  for (const auto& [B, T, E, K] : {std::array<int64_t, 4>{1, 1, 1, 1},
                                   {1, 1, 512, 10},
                                   {3, 67, 512, 10},
                                   {2, 300, 512, 10},
                                   {2, 65, 4, 4},
                                   {3, 40, 37, 6},
                                   {2, 33, 130, 1},
                                   {1, 70, 1000, 8},
                                   {2, 20, 4096, 32},
                                   {1, 63, 64, 5},
                                   {1, 64, 65, 6},
                                   {2, 30, 48, 5},
                                   {2, 0, 3, 2}})
    for (GateNorm norm : {GateNorm::kTopK, GateNorm::kNone})
      variants.push_back(of(concat(B, " x ", T, " tokens, ", K, " of ", E, norm == GateNorm::kTopK ? "" : ", no norm"),
                            with_invalid_tokens(B, T), E, K, norm, {.logits = kWithTies}));
  Segments few = Segments::whole_rows(2, 3);
  few.valid[4] = 0;
  // Each part of the gradient alone, so that none hides behind the others.
  for (GateNorm norm : {GateNorm::kTopK, GateNorm::kNone})
    for (const auto& [name, gate, prob, z_weight] : {std::tuple{"all", 1.0, 1.0, 0.07},
                                                     {"gates", 1.0, 0.0, 0.0},
                                                     {"balance", 0.0, 1.0, 0.0},
                                                     {"z-loss", 0.0, 0.0, 0.07}})
      variants.push_back(of(concat("gradient of ", name, norm == GateNorm::kTopK ? "" : ", no norm"), few, 7, 3, norm,
                            {kFarApart, gate, prob, z_weight, true}));
  return variants;
}

Variants checked(const Sizes& s) {
  return {of(concat(s.experts_per_token, " of ", s.experts, " experts"), rows_with_invalid_tokens(), s.experts,
             s.experts_per_token, s.gate_norm, {.logits = kWithTies, .prob = 1e-3, .z_weight = 1e-3})};
}
Variants timed(const Sizes& s) {
  return {of(concat(s.tokens(), " x ", s.experts, ", K ", s.experts_per_token), whole_rows(s), s.experts,
             s.experts_per_token, s.gate_norm, {.logits = normal(), .prob = 0.1, .z_weight = 1e-3})};
}

}  // namespace

OperatorCase router_case() { return {"router", hard, checked, timed, only_implementation}; }

}  // namespace braid::cases
