#pragma once

#include <span>
#include <string>
#include <vector>

#include "kernels/core/context.h"
#include "model/parameter_layout.h"
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
  std::span<const Tensor> moments;  // as the rule lists them
  int64_t first;                    // index of its first element in the whole tensor
};

// What a rule keeps of every weight, or of so many consecutive ones; the last of a tensor may be fewer.
struct StoredMoment {
  std::string name;  // also in checkpoints: "<name>/<parameter>"
  DType dtype;
  int64_t elements_each = 1;
};

// How weights change by their gradients. A rule has no memory of its own: what it keeps from step to step lies in
// moments, tensors like the weights that are sharded, saved and loaded with them and begin at 0.
class UpdateRule {
 public:
  virtual ~UpdateRule() = default;
  // Of the parameters of a group, beside masters of this dtype. What begins inside the elements of one number is never
  // updated for itself: shards and an expert's matrices begin at multiples of elements_each.
  virtual std::vector<StoredMoment> moments(const FlatGroup& group, DType master) const = 0;
  virtual void update(Context& ctx, const UpdatedPiece& piece, const UpdateStep& step) const = 0;
};

// The decoupled weight decay of a parameter: the config's, or 0.
double weight_decay_of(const Parameter& parameter, const OptimizerConfig& config);

}  // namespace braid
