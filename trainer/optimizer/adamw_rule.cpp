#include "trainer/optimizer/adamw_rule.h"

#include "kernels/adamw.h"
#include "kernels/core/moment_codes.h"
#include "model/initial_weights.h"

namespace braid {

std::vector<StoredMoment> AdamWRule::moments(const FlatGroup& group, DType master) const {
  if (config_.moment_dtype == MomentDType::kInt8 && group.storage == Storage::kActivation)
    return {{"exp_avg", DType::kU8},
            {"exp_avg_sq", DType::kU8},
            {"exp_avg_scale", master, MomentCodes::kBlock},
            {"exp_avg_sq_scale", master, MomentCodes::kBlock}};
  const DType dtype = config_.moment_dtype == MomentDType::kBf16 ? DType::kBF16 : master;
  return {{"exp_avg", dtype}, {"exp_avg_sq", dtype}};
}

void AdamWRule::update(Context& ctx, const UpdatedPiece& piece, const UpdateStep& step) const {
  const auto& m = piece.moments;
  const bool has_scales = m.size() == 4;
  adamw_update(ctx, {piece.weight, m[0], m[1], piece.low, has_scales ? m[2] : Tensor(), has_scales ? m[3] : Tensor()},
               piece.gradient,
               {step.lr, config_.beta1, config_.beta2, config_.eps, weight_decay_of(piece.parameter, config_),
                step.gradient_scale, step.number, random_stream(piece.parameter), piece.first});
}

}  // namespace braid
