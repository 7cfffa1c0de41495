#include "trainer/optimizer/update_rule.h"

namespace braid {
namespace {

bool decays(Decay group, NormWeightDecay policy) {
  switch (group) {
    case Decay::kYes: return true;
    case Decay::kQkNorm: return policy != NormWeightDecay::kNone;
    case Decay::kNorm: return policy == NormWeightDecay::kAllZeroCentred;
    case Decay::kNever: return false;
  }
  return false;
}

}  // namespace

double weight_decay_of(const Parameter& parameter, const OptimizerConfig& config) {
  return decays(parameter.decay, config.norm_weight_decay) ? config.weight_decay : 0;
}

}  // namespace braid
