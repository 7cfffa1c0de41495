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
  Tensor weight;                    // bf16, fp32, or fp64 in an fp64 run
  Tensor low;                       // of the masters of bf16 weights: see kernels/split_weights.h
  Tensor gradient;                  // in the dtype of the master, or bf16; may be overwritten
  std::span<const Tensor> moments;  // as the rule names them
  int64_t first;                    // index of its first element in the whole tensor
};

// How weights change by their gradients. A rule has no memory of its own: what it keeps from step to step lies in
// moments, tensors like the weights that are sharded, saved and loaded with them and begin at 0.
class UpdateRule {
 public:
  virtual ~UpdateRule() = default;
  virtual std::vector<std::string> moments() const = 0;  // their names, also in checkpoints: "<moment>/<parameter>"
  virtual DType moment_dtype(DType master) const = 0;    // beside masters of this dtype
  virtual void update(Context& ctx, const UpdatedPiece& piece, const UpdateStep& step) const = 0;
};

// The decoupled weight decay of a parameter: the config's, or 0.
double weight_decay_of(const Parameter& parameter, const OptimizerConfig& config);

}  // namespace braid
