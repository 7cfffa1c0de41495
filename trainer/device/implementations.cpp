#include "trainer/device/implementations.h"

#include <algorithm>

#include "kernels/attention.h"
#include "kernels/experts.h"
#include "kernels/gated_delta_rule.h"
#include "kernels/gated_rms_norm.h"
#include "kernels/matmul.h"

namespace braid {
namespace {

// A tensor that has everything but memory.
Tensor shaped(const Context& ctx, DType dtype, Shape shape) { return Tensor(nullptr, dtype, shape, ctx.device()); }

// B rows of two documents each.
Segments two_documents_per_row(int64_t B, int64_t T) {
  Segments segments = Segments::whole_rows(B, T);
  segments.offsets = {0};
  for (int64_t row = 0; row < B; ++row) {
    segments.offsets.push_back(row * T + 1);
    segments.offsets.push_back((row + 1) * T);
  }
  return segments;
}

Implementation attention_of_run(Context& ctx, const RunConfig& c, DType dtype) {
  const AttentionDims dims = c.model.attention();
  const int64_t B = c.train.micro_batch_size, T = c.train.seq_length, Dh = dims.head_dim;
  const Tensor q = shaped(ctx, dtype, {B * T, dims.query_heads, Dh}),
               k = shaped(ctx, dtype, {B * T, dims.kv_heads, Dh});
  const AttentionTensors in = {q, k, k, shaped(ctx, dtype, {B * T, dims.query_heads, 2, Dh})};
  const auto whole = attention_implementation(ctx, in, Segments::whole_rows(B, T));
  const auto packed = attention_implementation(ctx, in, two_documents_per_row(B, T));
  if (!ctx.on_cuda()) return {whole.forward, ""};
  return {concat("whole rows: ", whole.forward, " forward, ", whole.backward,
                 " backward; packed documents: ", packed.forward, " forward, ", packed.backward, " backward"),
          packed.why_slow};
}

// The first of several that is slow, or else the first.
Implementation slowest(std::initializer_list<Implementation> implementations) {
  for (const Implementation& i : implementations)
    if (!i.why_slow.empty()) return i;
  return *implementations.begin();
}

bool has_layer(const ModelConfig& m, LayerType type) {
  for (int64_t layer = 0; layer < m.num_hidden_layers; ++layer)
    if (m.layer_type(layer) == type) return true;
  return false;
}

}  // namespace

bool uses_gated_delta_net(const ModelConfig& model) { return has_layer(model, LayerType::kLinearAttention); }

bool uses_attention(const RunConfig& config) {
  return has_layer(config.model, LayerType::kFullAttention) || config.mtp.on();
}

std::vector<OperatorImplementation> operator_implementations(Context& ctx, const RunConfig& c) {
  const ModelConfig& m = c.model;
  const DType dtype = dtype_of_precision(c.precision);
  const int64_t C = m.hidden_size, F = m.moe_intermediate_size, Fs = m.shared_expert_intermediate_size;
  const GdnDims gdn = m.gdn();
  const AttentionDims attention = m.attention();
  const bool has_gdn = uses_gated_delta_net(m), has_attention = uses_attention(c);
  const Implementation only = {ctx.on_cuda() ? "one kernel for every size" : "CPU", ""};
  const Implementation hidden_rows = row_pass_implementation(ctx, dtype, C);
  auto matmul = [&](int64_t width) { return matmul_implementation(ctx, dtype, width); };

  std::vector<OperatorImplementation> list;
  list.push_back({"matmul", slowest({matmul(C), matmul(Fs), matmul(has_gdn ? gdn.value_heads * gdn.value_dim : C),
                                     matmul(has_attention ? attention.query_heads * attention.head_dim : C)})});
  list.push_back({"embedding", hidden_rows});
  list.push_back({"rms_norm", hidden_rows});
  if (has_gdn) {
    const int64_t N = c.train.micro_batch_size * c.train.seq_length, Hk = gdn.key_heads, Hv = gdn.value_heads;
    const Tensor keys = shaped(ctx, dtype, {N, Hk, gdn.key_dim}), values = shaped(ctx, dtype, {N, Hv, gdn.value_dim});
    const Tensor gates = shaped(ctx, wide_dtype(dtype), {N, Hv});
    list.push_back({"gdn_inputs", gdn_inputs_implementation(ctx, dtype, gdn)});
    list.push_back({"gated_delta_rule", gated_delta_rule_implementation(ctx, {keys, keys, values, gates, gates})});
    list.push_back({"gated_rms_norm", gated_rms_norm_implementation(ctx, dtype, gdn)});
  }
  if (has_attention) {
    list.push_back({"attention_inputs", attention_inputs_implementation(ctx, dtype, attention)});
    list.push_back({"attention", attention_of_run(ctx, c, dtype)});
  }
  const int64_t El = m.num_experts / c.parallel.expert;
  list.push_back({"router", only});
  list.push_back({"expert_rows", hidden_rows});
  list.push_back(
      {"experts", experts_implementation(ctx, {shaped(ctx, dtype, {El, 2 * F, C}), shaped(ctx, dtype, {El, C, F})})});
  list.push_back({"swiglu", row_pass_implementation(ctx, dtype, Fs)});
  list.push_back({"lm_head_loss", row_pass_implementation(ctx, dtype, m.vocab_size)});
  if (c.mtp.on()) list.push_back({"mtp_inputs", hidden_rows});
  list.push_back({"adamw", only});
  return list;
}

void check_nothing_slow(const std::vector<OperatorImplementation>& implementations, const RunConfig& config) {
  if (config.precision != Precision::kBf16) return;
  std::string reasons, names;
  for (const OperatorImplementation& i : implementations) {
    const bool allowed =
        std::find(config.allow_slow.begin(), config.allow_slow.end(), i.name) != config.allow_slow.end();
    if (i.how.why_slow.empty() || allowed) continue;
    reasons += concat(reasons.empty() ? "" : "; ", i.name, " (", i.how.why_slow, ")");
    names += (names.empty() ? "" : ", ") + i.name;
  }
  check<ConfigError>(reasons.empty(), "this run would be slower than the GPU allows, in ", reasons,
                     "; change the model or the build, or allow it: allow_slow: [", names, "]");
}

}  // namespace braid
