#pragma once

#include "trainer/optimizer/optimizer_config.h"
#include "trainer/optimizer/update_rule.h"

namespace braid {

// Muon on pieces that are whole matrices. See kernels/muon.h.
class MuonRule final : public UpdateRule {
 public:
  // What Muon updates: the matrices of linear maps between hidden states. Embedding and head are left to AdamW as its
  // authors do, and so is what has one row or column, where orthogonal means no more than scaled: norms, the
  // convolution, the gate of the shared expert. The router is a map like others, as in Moonlight.
  static bool takes(const Parameter& parameter);

  explicit MuonRule(const OptimizerConfig& config) : config_(config) {}
  std::vector<StoredMoment> moments(const FlatGroup& group, DType master) const override;
  // Every linear map that a matrix packs is updated for itself: query and gate of all heads, the gate and up half of an
  // expert, q, k, v and z, b and a of a delta rule.
  void update(Context& ctx, const UpdatedPiece& piece, const UpdateStep& step) const override;

 private:
  OptimizerConfig config_;
};

}  // namespace braid
