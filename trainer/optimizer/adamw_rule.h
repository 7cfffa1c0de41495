#pragma once

#include "trainer/optimizer/optimizer_config.h"
#include "trainer/optimizer/update_rule.h"

namespace braid {

// AdamW on flat pieces, however they are cut. See kernels/adamw.h.
class AdamWRule final : public UpdateRule {
 public:
  explicit AdamWRule(const OptimizerConfig& config) : config_(config) {}
  // int8: of matrices, in codes beside their scales; of what is small, and stored wide, as wide as masters.
  std::vector<StoredMoment> moments(const FlatGroup& group, DType master) const override;
  void update(Context& ctx, const UpdatedPiece& piece, const UpdateStep& step) const override;

 private:
  OptimizerConfig config_;
};

}  // namespace braid
