#include "model/model_flop.h"

#include "model/mtp_block.h"

namespace braid {

double training_flop_per_token(const ModelConfig& m, const MtpConfig& mtp, int64_t document_tokens) {
  const double head = double(m.hidden_size) * double(m.vocab_size);
  double forward = head;
  for (int64_t layer = 0; layer < m.num_hidden_layers; ++layer)
    forward += DecoderLayer::multiply_adds(m, m.layer_type(layer), document_tokens);
  if (mtp.on()) forward += MtpBlock::multiply_adds(m, document_tokens) + head;
  return 6 * forward;
}

double repeated_flop_per_token(const ModelConfig& m, const MtpConfig& mtp, int64_t document_tokens,
                               const Recomputation& recompute) {
  const std::vector<Recompute> layers = recompute_of_layers(m, mtp, recompute);
  double again = 0;
  for (int64_t layer = 0; layer < m.num_hidden_layers; ++layer)
    again += DecoderLayer::multiply_adds_again(m, m.layer_type(layer), document_tokens, layers[layer]);
  if (mtp.on())
    again += DecoderLayer::multiply_adds_again(m, MtpBlockParams::kLayerType, document_tokens, layers.back());
  return 2 * again;
}

}  // namespace braid
