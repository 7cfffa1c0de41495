#include <array>
#include <cmath>

#include "kernels/adamw.h"
#include "kernels/attention.h"
#include "kernels/core/copy.h"
#include "kernels/embedding.h"
#include "kernels/expert_rows.h"
#include "kernels/experts.h"
#include "kernels/gated_delta_rule.h"
#include "kernels/gated_rms_norm.h"
#include "kernels/lm_head_loss.h"
#include "kernels/load_balance.h"
#include "kernels/matmul.h"
#include "kernels/mtp_inputs.h"
#include "kernels/random.h"
#include "kernels/rms_norm.h"
#include "kernels/sum_squares.h"
#include "kernels/swiglu.h"
#include "trainer/device/implementations.h"
#include "trainer/device/self_check.h"

namespace braid {
namespace {

constexpr auto kActivation = CheckSide::kActivation, kWide = CheckSide::kWide;
constexpr double kEps = 1e-6;

// Documents of one token, and others on both sides of a chunk and of a tile.
Segments packed_documents() { return Segments::packed({1, 1, 70, 3, 129}); }

// Three rows, the last without valid tokens.
Segments rows_with_invalid_tokens() {
  Segments segments = Segments::whole_rows(3, 68);
  for (int64_t n = 0; n < segments.num_tokens(); ++n) segments.valid[n] = n % 7 != 3 && n < 2 * 68;
  return segments;
}

constexpr int64_t kTokens = 204;  // of both

void check_rms_norm(CheckSide& s, int64_t C) {
  const int64_t N = kTokens;
  const Tensor x = s.input(s.normal({N, C}), kActivation), delta = s.input(s.normal({N, C}), kActivation);
  const Tensor weight = s.input(s.normal({C}, 0.3), kWide), d_y = s.input(s.normal({N, C}), kActivation);
  Tensor y = s.unwritten({N, C}, kActivation), rstd = s.unwritten({N}, kWide), d_x = s.unwritten({N, C}, kActivation);
  Tensor d_weight = s.input(s.normal({C}), kWide);
  rms_norm_forward(s.ctx(), y, rstd, x, weight, kEps);
  s.result("rms_norm_forward", "y", y);
  s.result("rms_norm_forward", "rstd", rstd);
  rms_norm_backward(s.ctx(), d_x, d_weight, d_y, x, weight, rstd);
  s.result("rms_norm_backward", "d_x", d_x);
  s.result("rms_norm_backward", "d_weight", d_weight);

  Tensor sum = s.unwritten({N, C}, kActivation), d_sum = s.input(s.normal({N, C}), kActivation);
  add_rms_norm_forward(s.ctx(), y, sum, rstd, x, delta, weight, kEps);
  s.result("add_rms_norm_forward", "y", y);
  s.result("add_rms_norm_forward", "sum", sum);
  add_rms_norm_backward(s.ctx(), d_sum, d_weight, d_y, sum, weight, rstd);
  s.result("add_rms_norm_backward", "d_sum", d_sum);
  s.result("add_rms_norm_backward", "d_weight", d_weight);
}

void check_linear(CheckSide& s, int64_t I) {
  const int64_t N = kTokens, O = 264;
  const Tensor x = s.input(s.normal({N, I}), kActivation), d_y = s.input(s.normal({N, O}), kActivation);
  const Tensor weight = s.input(s.normal({O, I}, 1 / std::sqrt(double(I))), kActivation);
  Tensor y = s.unwritten({N, O}, kActivation), y_wide = s.unwritten({N, O}, kWide);
  linear_forward(s.ctx(), y, x, weight);
  linear_forward(s.ctx(), y_wide, x, weight);
  s.result("linear_forward", "y", y);
  s.result("linear_forward", "y in the wide dtype", y_wide);
  linear_forward(s.ctx(), y, x, weight, Accumulate::kYes);
  s.result("linear_forward", "y that is added to", y);
  Tensor d_x = s.unwritten({N, I}, kActivation), d_weight = s.filled({O, I}, kWide, 0.25);
  linear_backward_input(s.ctx(), d_x, d_y, weight);
  linear_backward_input(s.ctx(), d_x, d_y, weight, Accumulate::kYes);
  s.result("linear_backward_input", "d_x", d_x);
  linear_backward_weight(s.ctx(), d_weight, d_y, x);
  s.result("linear_backward_weight", "d_weight", d_weight);
}

void check_embedding(CheckSide& s, int64_t C) {
  const int64_t N = kTokens, V = 1000;
  std::vector<int64_t> ids(N);
  for (int64_t n = 0; n < N; ++n) ids[n] = n % 5 == 0 ? 7 : n % 11 == 0 ? -1 : n * 37 % V;
  const Tensor tokens = s.input(ids, {N}), table = s.input(s.normal({V, C}), kActivation);
  const Tensor d_y = s.input(s.normal({N, C}), kActivation);
  Tensor y = s.unwritten({N, C}, kActivation), d_table = s.filled({V, C}, kWide, 0.25);
  embedding_forward(s.ctx(), y, tokens, table);
  s.result("embedding_forward", "y", y);
  embedding_backward(s.ctx(), d_table, d_y, tokens);
  s.result("embedding_backward", "d_table", d_table);
}

void check_gdn_inputs(CheckSide& s, const GdnDims& d) {
  const Segments segments = s.input(packed_documents());
  const int64_t N = kTokens, Hk = d.key_heads, Hv = d.value_heads;
  const Shape keys{N, Hk, d.key_dim}, values{N, Hv, d.value_dim}, gates{N, Hv}, columns{N, d.qkvz_columns()};
  const Shape conv{d.conv_channels(), 1, d.conv_kernel};
  auto narrow = [&](Shape shape) { return s.input(s.normal(shape), kActivation); };
  auto wide = [&](Shape shape, double stddev = 1) { return s.input(s.normal(shape, stddev), kWide); };
  const GdnProjections x = {narrow(columns), wide({N, d.ba_columns()}, 5)};
  const GdnInputWeights weights = {wide(conv, 0.5), wide({Hv}), wide({Hv})};
  const DeltaRuleInputs d_out = {narrow(keys), narrow(keys), narrow(values), wide(gates), wide(gates)};
  const GdnInputs out = {{s.unwritten(keys, kActivation), s.unwritten(keys, kActivation),
                          s.unwritten(values, kActivation), s.unwritten(gates, kWide), s.unwritten(gates, kWide)},
                         s.unwritten({N, Hk}, kWide),
                         s.unwritten({N, Hk}, kWide)};
  // The z columns are not written.
  const GdnProjections d_x = {s.filled(columns, kActivation, 1), s.unwritten({N, d.ba_columns()}, kActivation)};
  const GdnInputWeights d_weights = {wide(conv), wide({Hv}), wide({Hv})};
  gdn_inputs_forward(s.ctx(), out, x, weights, segments, d);
  const char* const forward = "gdn_inputs_forward";
  s.result(forward, "q", out.rule.q);
  s.result(forward, "k", out.rule.k);
  s.result(forward, "v", out.rule.v);
  s.result(forward, "beta", out.rule.beta);
  s.result(forward, "log_decay", out.rule.log_decay);
  gdn_inputs_backward(s.ctx(), d_x, d_weights, d_out, out, x, weights, segments, d);
  const char* const backward = "gdn_inputs_backward";
  s.result(backward, "d_qkvz", d_x.qkvz);
  s.result(backward, "d_ba", d_x.ba);
  s.result(backward, "d_conv", d_weights.conv);
  s.result(backward, "d_a_log", d_weights.a_log);
  s.result(backward, "d_dt_bias", d_weights.dt_bias);
}

Tensor unit_rows(Tensor x) {
  const int64_t width = x.dim(-1);
  for (int64_t row = 0; row < x.numel() / width; ++row) {
    double *begin = x.data<double>() + row * width, sum_sq = 0;
    for (int64_t c = 0; c < width; ++c) sum_sq += begin[c] * begin[c];
    for (int64_t c = 0; c < width; ++c) begin[c] /= std::sqrt(sum_sq);
  }
  return x;
}

// Heads whose states hardly decay, heads that forget slowly and heads that forget at once; some tokens not at all.
Tensor decays(Tensor uniform) {
  constexpr std::array kStrongest = {1e-3, 0.3, 20.0};
  const int64_t Hv = uniform.dim(1);
  for (int64_t i = 0; i < uniform.numel(); ++i)
    uniform.data<double>()[i] *= i / Hv % 5 == 4 ? 0.0 : -kStrongest[i % Hv % kStrongest.size()];
  return uniform;
}

void check_gated_delta_rule(CheckSide& s, const GdnDims& d) {
  const Segments segments = s.input(packed_documents());
  const int64_t N = kTokens, Hv = d.value_heads;
  const Shape keys{N, d.key_heads, d.key_dim}, values{N, Hv, d.value_dim}, gates{N, Hv};
  DeltaRuleInputs in;
  in.q = s.input(unit_rows(s.normal(keys)), kActivation);
  in.k = s.input(unit_rows(s.normal(keys)), kActivation);
  in.v = s.input(s.normal(values), kActivation);
  in.beta = s.input(s.uniform(gates, 0, 1), kWide);
  in.log_decay = s.input(decays(s.uniform(gates, 0, 1)), kWide);
  Tensor o = s.unwritten(values, kActivation);
  const Tensor d_o = s.input(s.normal(values), kActivation);
  const DeltaRuleInputs d_in = {s.unwritten(keys, kActivation), s.unwritten(keys, kActivation),
                                s.unwritten(values, kActivation), s.unwritten(gates, kWide), s.unwritten(gates, kWide)};
  gated_delta_rule_forward(s.ctx(), o, in, segments);
  s.result("gated_delta_rule_forward", "o", o);
  gated_delta_rule_backward(s.ctx(), d_in, d_o, in, segments);
  const char* const backward = "gated_delta_rule_backward";
  s.result(backward, "d_q", d_in.q);
  s.result(backward, "d_k", d_in.k);
  s.result(backward, "d_v", d_in.v);
  s.result(backward, "d_beta", d_in.beta);
  s.result(backward, "d_log_decay", d_in.log_decay);
}

void check_gated_rms_norm(CheckSide& s, const GdnDims& d) {
  const int64_t N = kTokens, Hv = d.value_heads, Dv = d.value_dim;
  const Shape heads{N, Hv, Dv}, columns{N, d.qkvz_columns()};
  const Tensor o = s.input(s.normal(heads), kActivation), qkvz = s.input(s.normal(columns), kActivation);
  const Tensor weight = s.input(s.normal({Dv}, 0.3, 1), kWide), d_y = s.input(s.normal(heads), kActivation);
  Tensor y = s.unwritten(heads, kActivation), rstd = s.unwritten({N, Hv}, kWide);
  Tensor d_o = s.unwritten(heads, kActivation), d_weight = s.input(s.normal({Dv}), kWide);
  Tensor d_qkvz = s.filled(columns, kActivation, 1);  // only the z columns are written
  gated_rms_norm_forward(s.ctx(), y, rstd, o, qkvz, weight, kEps, d);
  s.result("gated_rms_norm_forward", "y", y);
  gated_rms_norm_backward(s.ctx(), d_o, d_qkvz, d_weight, d_y, o, rstd, qkvz, weight, d);
  s.result("gated_rms_norm_backward", "d_o", d_o);
  s.result("gated_rms_norm_backward", "d_qkvz", d_qkvz);
  s.result("gated_rms_norm_backward", "d_weight", d_weight);
}

void check_attention_inputs(CheckSide& s, const AttentionDims& d) {
  const Segments segments = s.input(packed_documents());
  const int64_t N = kTokens, Hq = d.query_heads, Hkv = d.kv_heads, Dh = d.head_dim;
  const Shape pairs{N, Hq, 2, Dh}, queries{N, Hq, Dh}, keys{N, Hkv, Dh};
  const AttentionProjections x = {s.input(s.normal(pairs), kActivation), s.input(s.normal(keys), kActivation)};
  const AttentionInputWeights weights = {s.input(s.normal({Dh}, 0.3), kWide), s.input(s.normal({Dh}, 0.3), kWide)};
  const Tensor d_q = s.input(s.normal(queries), kActivation), d_k = s.input(s.normal(keys), kActivation);
  const AttentionInputs out = {s.unwritten(queries, kActivation), s.unwritten(keys, kActivation),
                               s.unwritten({N, Hq}, kWide), s.unwritten({N, Hkv}, kWide)};
  const AttentionProjections d_x = {s.filled(pairs, kActivation, 1),  // the gate half is not written
                                    s.unwritten(keys, kActivation)};
  const AttentionInputWeights d_weights = {s.input(s.normal({Dh}), kWide), s.input(s.normal({Dh}), kWide)};
  attention_inputs_forward(s.ctx(), out, x, weights, segments, d);
  s.result("attention_inputs_forward", "q", out.q);
  s.result("attention_inputs_forward", "k", out.k);
  attention_inputs_backward(s.ctx(), d_x, d_weights, d_q, d_k, out, x, weights, segments, d);
  s.result("attention_inputs_backward", "d_q_gate", d_x.q_gate);
  s.result("attention_inputs_backward", "d_k", d_x.k);
  s.result("attention_inputs_backward", "d_q_norm", d_weights.q_norm);
  s.result("attention_inputs_backward", "d_k_norm", d_weights.k_norm);
}

void check_attention(CheckSide& s, const AttentionDims& d, const Segments& on_host) {
  const Segments segments = s.input(on_host);
  const int64_t N = segments.num_tokens(), Hq = d.query_heads, Hkv = d.kv_heads, Dh = d.head_dim;
  const Shape queries{N, Hq, Dh}, keys{N, Hkv, Dh}, pairs{N, Hq, 2, Dh};
  auto narrow = [&](Shape shape) { return s.input(s.normal(shape), kActivation); };
  const AttentionTensors in = {narrow(queries), narrow(keys), narrow(keys), narrow(pairs)};
  const Tensor d_y = narrow(queries);
  const AttentionOutputs out = {s.unwritten(queries, kActivation), s.unwritten(queries, kActivation),
                                s.unwritten({N, Hq}, kWide)};
  const AttentionGradients d_in = {s.unwritten(queries, kActivation), s.unwritten(keys, kActivation),
                                   s.unwritten(keys, kActivation),
                                   s.filled(pairs, kActivation, 1)};  // the query half is not written
  attention_forward(s.ctx(), out, in, segments);
  s.result("attention_forward", "y", out.y);
  s.result("attention_forward", "lse", out.lse);
  attention_backward(s.ctx(), d_in, d_y, in, out, segments);
  s.result("attention_backward", "d_q", d_in.q);
  s.result("attention_backward", "d_k", d_in.k);
  s.result("attention_backward", "d_v", d_in.v);
  s.result("attention_backward", "d_q_gate", d_in.q_gate);
}

// Multiples of 1/8, so that what is not equal is far enough apart for fp32; some tokens prefer no expert at all.
Tensor logits_with_ties(Tensor logits) {
  const int64_t E = logits.dim(1);
  for (int64_t i = 0; i < logits.numel(); ++i) {
    double& x = logits.data<double>()[i];
    x = i / E % 10 == 0 ? 0 : std::round(x * 8) / 8;
  }
  return logits;
}

void check_router(CheckSide& s, const ModelConfig& m) {
  const Segments segments = s.input(rows_with_invalid_tokens());
  const int64_t N = kTokens, B = segments.num_rows, E = m.num_experts, K = m.num_experts_per_tok;
  const GateNorm norm = m.norm_topk_prob ? GateNorm::kTopK : GateNorm::kNone;
  const Tensor logits = s.input(logits_with_ties(s.normal({N, E}, 1.5)), kWide);
  const RouterOutputs out = {s.unwritten({N, K}, DType::kI32), s.unwritten({N, K}, kWide),
                             s.unwritten({N, E}, kWide),       s.unwritten({N}, kWide),
                             s.unwritten({B, E}, DType::kI64), s.unwritten({B, E}, DType::kF64),
                             s.unwritten({B}, DType::kF64)};
  router_forward(s.ctx(), out, logits, segments, norm);
  s.result("router_forward", "expert_id", out.expert_id);
  s.result("router_forward", "gate", out.gate);
  s.result("router_forward", "prob", out.prob);
  s.result("router_forward", "counts", out.counts);
  s.result("router_forward", "prob_sum", out.prob_sum);
  s.result("router_forward", "z_sum", out.z_sum);

  Tensor totals = s.input(std::vector<int64_t>(E, 3), {E}), sums = s.input(std::vector<double>(2, 0.5), {2});
  Tensor d_prob = s.unwritten({B, E}, DType::kF64), d_logits = s.unwritten({N, E}, kActivation);
  add_counts(s.ctx(), totals, out.counts);
  s.result("add_counts", "totals", totals);
  load_balance(s.ctx(), d_prob, sums, totals.view({1, E}), out, 0.1, 1.0 / double(N));
  s.result("load_balance", "d_prob", d_prob);
  s.result("load_balance", "sums", sums);
  const Tensor d_gate = s.input(s.normal({N, K}), kWide);
  router_backward(s.ctx(), d_logits, d_gate, d_prob, 1e-3, out, segments, norm);
  // With one expert nothing is left but what cancels.
  if (E > 1) s.result("router_backward", "d_logits", d_logits);
}

void check_expert_rows(CheckSide& s, const ModelConfig& m) {
  const int64_t N = kTokens, E = m.num_experts, K = m.num_experts_per_tok, C = m.hidden_size;
  // Every second expert has no rows where there are enough of them; every seventh token is dropped.
  const int64_t stride = 2 * K <= E ? 2 : 1, used = E / stride;
  std::vector<int32_t> ids(N * K, -1);
  int64_t R = 0;
  for (int64_t n = 0; n < N; ++n)
    for (int64_t k = 0; n % 7 != 3 && k < K; ++k, ++R)
      ids[n * K + k] = static_cast<int32_t>((n * n + k) % used * stride);
  const Tensor expert_id = s.input(ids, {N, K}), x = s.input(s.normal({N, C}), kActivation);
  const ExpertOrder order = {s.unwritten({N, K}, DType::kI32), s.unwritten({N * K}, DType::kI32),
                             s.unwritten({E}, DType::kI64)};
  expert_order(s.ctx(), order, expert_id);
  s.result("expert_order", "row_of_slot", order.row_of_slot);
  s.result("expert_order", "slot_of_row", order.slot_of_row);
  s.result("expert_order", "rows_per_expert", order.rows_per_expert);

  // The GPU is given room for a row per pair, as in training.
  Tensor rows = s.unwritten({s.on_cuda() ? N * K : R, C}, kActivation), y = s.unwritten({N, C}, kActivation);
  gather_rows(s.ctx(), rows, x, order);
  s.result("gather_rows", "rows", rows.rows(0, R));
  combine_rows(s.ctx(), y, rows, order);
  s.result("combine_rows", "y", y);

  // The experts on two ranks, as far as they go.
  const int64_t El = (E + 1) / 2;
  Tensor place = s.unwritten({N, std::min<int64_t>(K, 2)}, DType::kI32), local_ids = s.input(ids, {N, K});
  token_places(s.ctx(), place, expert_id, El, N, 1);
  s.result("token_places", "place", place);
  local_expert_ids(s.ctx(), local_ids, El, El);
  s.result("local_expert_ids", "ids", local_ids);
  Tensor counts = s.input(std::vector<int64_t>{3, 0, R, 5}, {4}), needed = s.input(std::vector<int64_t>{2}, {1});
  limit_rows(s.ctx(), counts, needed, R);
  s.result("limit_rows", "rows_per_expert", counts);
  s.result("limit_rows", "needed", needed);

  // A number per pair, as the gates travel.
  const ExpertOrder per_pair = {order.row_of_slot.view({N * K, 1}), order.slot_of_row, order.rows_per_expert};
  const Tensor gate = s.input(s.normal({N * K, 1}), kWide);
  Tensor row_gate = s.unwritten({R, 1}, kWide), gate_back = s.unwritten({N * K, 1}, kWide);
  gather_rows(s.ctx(), row_gate, gate, per_pair);
  s.result("gather_rows", "rows of one number", row_gate);
  combine_rows(s.ctx(), gate_back, row_gate, per_pair);
  s.result("combine_rows", "y of one number", gate_back);
}

// Rows that belong to no expert, which the GPU has room for, are not numbers.
Tensor with_spare_rows(Tensor x, int64_t R) {
  const int64_t width = x.numel() / x.dim(0);
  std::fill(x.data<double>() + R * width, x.data<double>() + x.numel(), std::nan(""));
  return x;
}

void check_experts(CheckSide& s, int64_t C, int64_t F) {
  const std::vector<int64_t> counts = {0, 1, 65, 0, 130};
  const int64_t El = static_cast<int64_t>(counts.size()), R = 196, room = s.on_cuda() ? R + 3 : R, most = R + 3;
  auto rows_of = [&](Shape shape, CheckSide::Storage storage) {
    return s.input(with_spare_rows(s.normal(shape), R), storage).rows(0, room);
  };
  const Tensor x = rows_of({most, C}, kActivation), d_out = rows_of({most, C}, kActivation);
  const Tensor row_gate = rows_of({most}, kWide), rows_per_expert = s.input(counts, {El});
  const ExpertWeights weights = {s.input(s.normal({El, 2 * F, C}, 1 / std::sqrt(double(C))), kActivation),
                                 s.input(s.normal({El, C, F}, 1 / std::sqrt(double(F))), kActivation)};
  const ExpertWeights d_weights = {s.filled({El, 2 * F, C}, kWide, 0.25), s.filled({El, C, F}, kWide, 0.25)};
  Tensor out = s.unwritten({room, C}, kActivation), gate_up_out = s.unwritten({room, 2 * F}, kActivation);
  Tensor d_x = s.unwritten({room, C}, kActivation), d_row_gate = s.unwritten({room}, kWide);
  experts_forward(s.ctx(), out, gate_up_out, x, row_gate, rows_per_expert, weights);
  s.result("experts_forward", "gate_up_out", gate_up_out.rows(0, R));
  s.result("experts_forward", "out", out.rows(0, R));
  experts_backward(s.ctx(), d_x, d_row_gate, d_weights, d_out, x, row_gate, gate_up_out, rows_per_expert, weights);
  s.result("experts_backward", "d_x", d_x.rows(0, R));
  s.result("experts_backward", "d_row_gate", d_row_gate.rows(0, R));
  s.result("experts_backward", "d_gate_up", d_weights.gate_up);
  s.result("experts_backward", "d_down", d_weights.down);
}

void check_swiglu(CheckSide& s, int64_t F) {
  const int64_t N = kTokens;
  auto narrow = [&](Shape shape) { return s.input(s.normal(shape), kActivation); };
  const Tensor a = narrow({N, F}), b = narrow({N, F}), gate = s.input(s.normal({N, 1}), kWide);
  Tensor h = s.unwritten({N, F}, kActivation), d_h = narrow({N, F}), d_b = s.unwritten({N, F}, kActivation);
  Tensor d_a = d_h, d_gate = s.unwritten({N, 1}, kActivation);
  swiglu_forward(s.ctx(), h, a, b, gate);
  s.result("swiglu_forward", "h", h);
  swiglu_backward(s.ctx(), d_a, d_b, d_gate, d_h, a, b, gate);
  s.result("swiglu_backward", "d_a", d_a);
  s.result("swiglu_backward", "d_b", d_b);
  s.result("swiglu_backward", "d_gate", d_gate);
}

void check_mtp_inputs(CheckSide& s, int64_t C) {
  const int64_t N = kTokens;
  auto narrow = [&](Shape shape) { return s.input(s.normal(shape), kActivation); };
  const Tensor embedding = narrow({N, C}), hidden = narrow({N, C}), d_joined = narrow({N, 2 * C});
  const MtpInputWeights weights = {s.input(s.normal({C}, 0.3), kWide), s.input(s.normal({C}, 0.3), kWide)};
  const MtpInputs out = {s.unwritten({N, 2 * C}, kActivation), s.unwritten({N}, kWide), s.unwritten({N}, kWide)};
  Tensor d_embedding = s.unwritten({N, C}, kActivation), d_hidden = narrow({N, C});
  const MtpInputWeights d_weights = {s.input(s.normal({C}), kWide), s.input(s.normal({C}), kWide)};
  mtp_inputs_forward(s.ctx(), out, embedding, hidden, weights, kEps);
  s.result("mtp_inputs_forward", "joined", out.joined);
  mtp_inputs_backward(s.ctx(), d_embedding, d_hidden, d_weights, d_joined, embedding, hidden, out, weights);
  s.result("mtp_inputs_backward", "d_embedding", d_embedding);
  s.result("mtp_inputs_backward", "d_hidden", d_hidden);
  s.result("mtp_inputs_backward", "d_embedding_norm", d_weights.embedding_norm);
  s.result("mtp_inputs_backward", "d_hidden_norm", d_weights.hidden_norm);
}

void check_lm_head_loss(CheckSide& s, int64_t C, int64_t V) {
  const int64_t N = kTokens;
  std::vector<int64_t> ids(N);
  for (int64_t n = 0; n < N; ++n) ids[n] = n % 7 == 3 ? -1 : n * 31 % V;
  const Tensor hidden = s.input(s.normal({N, C}), kActivation), targets = s.input(ids, {N});
  const Tensor weight = s.input(s.normal({V, C}, 1.5 / std::sqrt(double(C))), kActivation);
  Tensor loss = s.unwritten({1}, DType::kF64), d_hidden = s.unwritten({N, C}, kActivation);
  Tensor d_weight = s.input(s.normal({V, C}, 1e-3), kWide);
  lm_head_loss_forward(s.ctx(), loss, hidden, weight, targets);
  s.result("lm_head_loss_forward", "loss_sum", loss);
  lm_head_loss_forward_backward(s.ctx(), loss, d_hidden, d_weight, hidden, weight, targets, 0.3);
  s.result("lm_head_loss_forward_backward", "loss_sum", loss);
  s.result("lm_head_loss_forward_backward", "d_hidden", d_hidden);
  s.result("lm_head_loss_forward_backward", "d_weight", d_weight);
}

void check_optimizer(CheckSide& s) {
  const int64_t n = 5003;
  const AdamWState state = {s.input(s.normal({n}), kWide), s.filled({n}, kWide, 0), s.filled({n}, kWide, 0)};
  const bool rounds = state.weight.dtype() == DType::kF32 && s.activation() == DType::kBF16;
  Tensor rounded = rounds ? s.unwritten({n}, kActivation) : Tensor(), norm = s.unwritten({1}, DType::kF64);
  Tensor gradient;
  for (int64_t step = 1; step <= 2; ++step) {
    gradient = s.input(s.normal({n}, 1e-3, 1e-3), kWide);
    adamw_update(s.ctx(), state, rounded, gradient, {1e-2, 0.9, 0.95, 1e-8, 0.1, 0.7, step});
  }
  s.result("adamw_update", "weight", state.weight);
  s.result("adamw_update", "m", state.m);
  s.result("adamw_update", "v", state.v);
  s.result("adamw_update", "rounded", rounds ? rounded : state.weight);
  sum_squares(s.ctx(), norm, gradient);
  s.result("sum_squares", "out", norm);

  Tensor converted = s.unwritten({n}, kActivation), random = s.unwritten({n}, kActivation);
  convert(s.ctx(), converted, state.weight);
  s.result("convert", "to", converted);
  fill_normal(s.ctx(), random, 0.1, 2, 5, 6, 1000);
  s.result("fill_normal", "x", random);
  fill_uniform(s.ctx(), random, -1, 1, 5, 7, 1000);
  s.result("fill_uniform", "x", random);
}

// Whole rows of as many tokens as cuDNN's backward wants them, or of another length if the run's rows have one.
Segments whole_rows_like(int64_t row_tokens) { return Segments::whole_rows(2, row_tokens % 128 == 0 ? 128 : 100); }

}  // namespace

std::vector<OperatorCheck> operator_checks(const RunConfig& c) {
  const ModelConfig m = c.model;
  const int64_t C = m.hidden_size, F = m.moe_intermediate_size, Fs = m.shared_expert_intermediate_size;
  const int64_t small_vocabulary = std::min<int64_t>(m.vocab_size, 1000 + m.vocab_size % 8);
  const GdnDims gdn = m.gdn();
  const AttentionDims attention = m.attention();
  const std::string precision = name_of_enum(c.precision);
  auto width = [&](int64_t n) { return concat(precision, ", width ", n); };
  const std::string heads = concat(precision, ", heads of ", attention.head_dim);
  const std::string gdn_heads =
      concat(precision, ", heads of ", gdn.key_dim, gdn.key_dim == gdn.value_dim ? "" : concat(" and ", gdn.value_dim));

  std::vector<OperatorCheck> checks = {
      {"linear", width(C), [=](CheckSide& s) { check_linear(s, C); }},
      {"embedding", width(C), [=](CheckSide& s) { check_embedding(s, C); }},
      {"rms_norm", width(C), [=](CheckSide& s) { check_rms_norm(s, C); }},
      {"router", concat(precision, ", ", m.num_experts_per_tok, " of ", m.num_experts, " experts"),
       [=](CheckSide& s) { check_router(s, m); }},
      {"expert_rows", concat(precision, ", ", m.num_experts, " experts, width ", C),
       [=](CheckSide& s) { check_expert_rows(s, m); }},
      {"experts", concat(precision, ", widths ", C, " and ", F), [=](CheckSide& s) { check_experts(s, C, F); }},
      {"swiglu", width(Fs), [=](CheckSide& s) { check_swiglu(s, Fs); }},
      {"lm_head_loss", width(C), [=](CheckSide& s) { check_lm_head_loss(s, C, small_vocabulary); }},
      {"adamw", precision, check_optimizer}};
  if (uses_gated_delta_net(m)) {
    checks.push_back({"gdn_inputs", gdn_heads, [=](CheckSide& s) { check_gdn_inputs(s, gdn); }});
    checks.push_back({"gated_delta_rule", gdn_heads, [=](CheckSide& s) { check_gated_delta_rule(s, gdn); }});
    checks.push_back({"gated_rms_norm", gdn_heads, [=](CheckSide& s) { check_gated_rms_norm(s, gdn); }});
  }
  if (uses_attention(c)) {
    const Segments whole = whole_rows_like(c.train.seq_length), packed = packed_documents();
    checks.push_back({"attention_inputs", heads, [=](CheckSide& s) { check_attention_inputs(s, attention); }});
    checks.push_back(
        {"attention", heads + ", whole rows", [=](CheckSide& s) { check_attention(s, attention, whole); }});
    checks.push_back(
        {"attention", heads + ", packed documents", [=](CheckSide& s) { check_attention(s, attention, packed); }});
  }
  if (c.mtp.on()) checks.push_back({"mtp_inputs", width(C), [=](CheckSide& s) { check_mtp_inputs(s, C); }});
  return checks;
}

}  // namespace braid
