#pragma once

#include "trainer/optimizer/adamw_rule.h"
#include "trainer/optimizer/muon_rule.h"
#include "trainer/optimizer/sharded_parameters.h"

namespace braid {

// The update rules and their moments of the own shards of `parameters`. Muon, where the config asks for it, updates the
// groups that are cut between matrices, AdamW all others.
class Optimizer {
 public:
  // Whose matrices the layout of `parameters` must not cut; null: none.
  static MatrixFilter whole_matrices(const OptimizerConfig& config) {
    return config.kind == OptimizerKind::kMuon ? MuonRule::takes : nullptr;
  }

  Optimizer(const OptimizerConfig& config, ShardedParameters& parameters);
  void plan(Planner& moments);

  // One update of all parameters; then every rank has the new weights.
  void update(Context& ctx, const UpdateStep& step);

  // What this rank stores of the moments in a checkpoint.
  std::vector<CheckpointSlice> slices();
  // The moments, from a checkpoint of any layout.   Errors: CheckpointError.
  void load(Context& ctx, const CheckpointReader& reader);

 private:
  const UpdateRule& rule(size_t group) const;
  std::vector<StoredMoment> stored_moments(size_t group) const;

  AdamWRule adamw_;
  MuonRule muon_;
  ShardedParameters& parameters_;
  std::vector<std::vector<Tensor>> moments_;  // per group and moment (shard_numel / elements_each)
};

}  // namespace braid
