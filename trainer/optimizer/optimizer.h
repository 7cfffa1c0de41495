#pragma once

#include <memory>

#include "trainer/optimizer/optimizer_config.h"
#include "trainer/optimizer/sharded_parameters.h"
#include "trainer/optimizer/update_rule.h"

namespace braid {

// The update rule and its moments of the own shards of `parameters`.
class Optimizer {
 public:
  Optimizer(const OptimizerConfig& config, ShardedParameters& parameters);
  void plan(Planner& moments);

  // One update of all parameters; then every rank has the new weights.
  void update(Context& ctx, const UpdateStep& step);

  // What this rank stores of the moments in a checkpoint.
  std::vector<CheckpointSlice> slices();
  // The moments, from a checkpoint of any layout.   Errors: CheckpointError.
  void load(Context& ctx, const CheckpointReader& reader);

 private:
  std::unique_ptr<UpdateRule> rule_;
  ShardedParameters& parameters_;
  std::vector<std::vector<Tensor>> moments_;  // per group and moment (shard_numel)
};

}  // namespace braid
