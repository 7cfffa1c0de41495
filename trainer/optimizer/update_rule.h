#pragma once

#include <span>
#include <string>
#include <vector>

#include "kernels/core/context.h"
#include "model/parameters.h"
#include "trainer/optimizer/optimizer_config.h"

namespace braid {

struct UpdateStep {
  double lr;
  double gradient_scale;  // multiplies every gradient first (clipping)
  int64_t number;         // 1 for the first update
};

// What this rank updates of a parameter; every tensor is flat (n).
struct UpdatedPiece {
  const Parameter& parameter;
  Tensor weight;                    // fp32, or fp64 in an fp64 run
  Tensor rounded;                   // bf16: gets the new weight too; not defined beside weights that are not rounded
  Tensor gradient;                  // in the dtype of the weight; may be overwritten
  std::span<const Tensor> moments;  // as the rule names them
};

// How weights change by their gradients. A rule has no memory of its own: what it keeps from step to step lies in
// moments, tensors like the weights that are sharded, saved and loaded with them and begin at 0.
class UpdateRule {
 public:
  virtual ~UpdateRule() = default;
  virtual std::vector<std::string> moments() const = 0;  // their names, also in checkpoints: "<moment>/<parameter>"
  virtual DType moment_dtype(DType weight) const = 0;    // beside weights of this dtype
  virtual void update(Context& ctx, const UpdatedPiece& piece, const UpdateStep& step) const = 0;
};

// The decoupled weight decay of a parameter: the config's, or 0.
double weight_decay_of(const Parameter& parameter, const OptimizerConfig& config);

}  // namespace braid
