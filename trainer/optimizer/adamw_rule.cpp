#include "trainer/optimizer/adamw_rule.h"

#include "kernels/adamw.h"
#include "model/initial_weights.h"

namespace braid {

DType AdamWRule::moment_dtype(DType master) const {
  return config_.moment_dtype == MomentDType::kBf16 ? DType::kBF16 : master;
}

void AdamWRule::update(Context& ctx, const UpdatedPiece& piece, const UpdateStep& step) const {
  adamw_update(ctx, {piece.weight, piece.moments[0], piece.moments[1], piece.low}, piece.gradient,
               {step.lr, config_.beta1, config_.beta2, config_.eps, weight_decay_of(piece.parameter, config_),
                step.gradient_scale, step.number, random_stream(piece.parameter), piece.first});
}

}  // namespace braid
