#include "model/recomputation.h"

#include "kernels/core/error.h"
#include "model/mtp_block.h"

namespace braid {
namespace {

Recompute next_dearer(Recompute policy) {
  assert(policy < Recompute::kLayer);
  return static_cast<Recompute>(static_cast<int>(policy) + 1);
}

}  // namespace

int64_t num_recomputed_layers(const ModelConfig& model, const MtpConfig& mtp) {
  return model.num_hidden_layers + (mtp.on() ? 1 : 0);
}

std::vector<Recompute> recompute_of_layers(const ModelConfig& model, const MtpConfig& mtp,
                                           const Recomputation& recomputation) {
  std::vector<LayerType> types;
  for (int64_t i = 0; i < model.num_hidden_layers; ++i) types.push_back(model.layer_type(i));
  if (mtp.on()) types.push_back(MtpBlockParams::kLayerType);
  std::vector<Recompute> layers(types.size(), recomputation.policy);
  int64_t left = recomputation.further;
  for (const LayerType type : {LayerType::kLinearAttention, LayerType::kFullAttention})
    for (size_t i = 0; i < layers.size(); ++i)
      if (types[i] == type && left-- > 0) layers[i] = next_dearer(recomputation.policy);
  return layers;
}

std::string to_text(const Recomputation& r, int64_t num_layers) {
  const std::string policy(name_of_enum(r.policy));
  if (r.further == 0) return policy;
  return concat(policy, ", ", name_of_enum(next_dearer(r.policy)), " in ", r.further, " of ", num_layers, " layers");
}

}  // namespace braid
