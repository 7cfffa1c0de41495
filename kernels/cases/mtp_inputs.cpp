#include "kernels/mtp_inputs.h"

#include "kernels/cases/operator_case.h"

namespace braid::cases {
namespace {

using enum Storage;

void declare(Trial& t, int64_t N, int64_t C, double eps) {
  const Var embedding = t.input("embedding", {N, C}, normal()), hidden = t.input("hidden", {N, C}, normal());
  const Var embedding_norm = t.input("embedding_norm", {C}, normal(0.3), kWide);
  const Var hidden_norm = t.input("hidden_norm", {C}, normal(0.3), kWide);
  const Var joined = t.output("joined", {N, 2 * C});
  const Var embedding_rstd = t.output("embedding_rstd", {N}, kWide, kWideSum);
  const Var hidden_rstd = t.output("hidden_rstd", {N}, kWide, kWideSum);
  const MtpInputWeights weights = {embedding_norm, hidden_norm};
  const MtpInputs out = {joined, embedding_rstd, hidden_rstd};
  t.forward("mtp_inputs_forward", {joined, embedding_rstd, hidden_rstd},
            [=](Context& ctx) { mtp_inputs_forward(ctx, out, embedding, hidden, weights, eps); },
            {.bytes = bytes_of(embedding, hidden, joined)});

  const Var d_joined = t.input("d_joined", {N, 2 * C}, normal());
  const Var d_embedding = t.output("d_embedding", {N, C}), d_hidden = t.sum("d_hidden", {N, C}, kActivation);
  const Var d_embedding_norm = t.sum("d_embedding_norm", {C}, kWide, kWideSum);
  const Var d_hidden_norm = t.sum("d_hidden_norm", {C}, kWide, kWideSum);
  const MtpInputWeights d_weights = {d_embedding_norm, d_hidden_norm};
  t.backward("mtp_inputs_backward", {d_embedding, d_hidden, d_embedding_norm, d_hidden_norm},
             [=](Context& ctx) {
               mtp_inputs_backward(ctx, d_embedding, d_hidden, d_weights, d_joined, embedding, hidden, out, weights);
             },
             {.bytes = bytes_of(d_joined, embedding, hidden, d_embedding, d_hidden, d_hidden)});
  t.loss(joined, d_joined);
  t.gradient(embedding, d_embedding);
  t.gradient(hidden, d_hidden);
  t.gradient(embedding_norm, d_embedding_norm);
  t.gradient(hidden_norm, d_hidden_norm);
}

Variants of(const std::string& label, int64_t N, int64_t C, double eps) {
  return {{label, [=](Trial& t) { declare(t, N, C, eps); }}};
}

Variants hard() {
  Variants variants;
  for (const auto& [N, C] : {std::pair<int64_t, int64_t>{3, 4},
                             {1, 2048},
                             {50, 2048},
                             {90, 24},
                             {40, 33},
                             {63, 64},
                             {64, 65},
                             {65, 130},
                             {0, 8}})
    variants.push_back(of(concat(N, " x ", C), N, C, 1e-6)[0]);
  return variants;
}

Variants checked(const Sizes& s) {
  return s.mtp ? of(concat("width ", s.hidden), kCheckedTokens, s.hidden, s.eps) : Variants{};
}
Variants timed(const Sizes& s) {
  return s.mtp ? of(concat(s.tokens(), " x ", s.hidden), s.tokens(), s.hidden, s.eps) : Variants{};
}

}  // namespace

OperatorCase mtp_inputs_case() { return {"mtp_inputs", hard, checked, timed, hidden_row_implementation}; }

}  // namespace braid::cases
