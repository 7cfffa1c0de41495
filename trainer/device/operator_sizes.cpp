#include "trainer/device/operator_sizes.h"

namespace braid {
namespace {

bool has_layer(const ModelConfig& m, LayerType type) {
  for (int64_t layer = 0; layer < m.num_hidden_layers; ++layer)
    if (m.layer_type(layer) == type) return true;
  return false;
}

}  // namespace

cases::Sizes operator_sizes(const ModelConfig& m, DType activation) {
  cases::Sizes s;
  s.activation = activation;
  s.hidden = m.hidden_size;
  s.vocabulary = m.vocab_size;
  s.experts = s.local_experts = m.num_experts;
  s.experts_per_token = m.num_experts_per_tok;
  s.expert_width = m.moe_intermediate_size;
  s.shared_width = m.shared_expert_intermediate_size;
  s.gate_norm = m.norm_topk_prob ? GateNorm::kTopK : GateNorm::kNone;
  s.eps = m.rms_norm_eps;
  s.gdn = m.gdn();
  s.attention = m.attention();
  s.mtp = s.shared_rows = true;
  return s;
}

cases::Sizes operator_sizes(const RunConfig& c) {
  cases::Sizes s = operator_sizes(c.model, dtype_of_precision(c.precision));
  s.rows = c.train.micro_batch_size;
  s.row_tokens = c.train.seq_length;
  s.local_experts = c.model.num_experts / c.parallel.expert;
  s.mtp = c.mtp.on();
  s.muon = c.optimizer.kind == OptimizerKind::kMuon;
  s.shared_rows = c.parallel.context > 1;
  if (!has_layer(c.model, LayerType::kLinearAttention)) s.gdn.reset();
  if (!has_layer(c.model, LayerType::kFullAttention) && !s.mtp) s.attention.reset();
  return s;
}

}  // namespace braid
