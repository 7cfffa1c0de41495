#include "trainer/bench/model_flop.h"

namespace braid {
namespace {

// Multiply-adds of the forward pass of one token.
double linear_attention(const ModelConfig& m) {
  const GdnDims d = m.gdn();
  const double C = double(m.hidden_size), value_width = double(d.value_heads * d.value_dim);
  return C * double(d.qkvz_columns() + d.ba_columns()) + double(d.conv_channels() * d.conv_kernel) + value_width * C +
         double(d.value_heads * d.key_dim * d.value_dim) * 4;
}

double full_attention(const ModelConfig& m, int64_t document_tokens) {
  const double C = double(m.hidden_size), q_width = double(m.num_attention_heads * m.head_dim);
  const double kv_width = double(m.num_key_value_heads * m.head_dim);
  return C * (2 * q_width + 2 * kv_width) + q_width * C + q_width * double(document_tokens);
}

double experts(const ModelConfig& m) {
  const double C = double(m.hidden_size);
  return C * double(m.num_experts) + 3 * C * double(m.num_experts_per_tok * m.moe_intermediate_size) +
         3 * C * double(m.shared_expert_intermediate_size) + C;
}

}  // namespace

double training_flop_per_token(const ModelConfig& m, const MtpConfig& mtp, int64_t document_tokens) {
  const double C = double(m.hidden_size), head = C * double(m.vocab_size);
  double forward = head;
  for (int64_t layer = 0; layer < m.num_hidden_layers; ++layer)
    forward += experts(m) + (m.layer_type(layer) == LayerType::kFullAttention ? full_attention(m, document_tokens)
                                                                              : linear_attention(m));
  if (mtp.on()) forward += 2 * C * C + full_attention(m, document_tokens) + experts(m) + head;
  return 6 * forward;
}

}  // namespace braid
