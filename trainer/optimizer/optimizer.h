#pragma once

#include "trainer/optimizer/adamw_rule.h"
#include "trainer/optimizer/muon_rule.h"
#include "trainer/optimizer/sharded_parameters.h"
#include "trainer/optimizer/state_stream.h"

namespace braid {

// The update rules and their moments of the own shards of `parameters`. Muon, where the config asks for it, updates the
// groups that are cut between matrices, AdamW all others.
class Optimizer {
 public:
  // Whose matrices the layout of `parameters` must not cut; null: none.
  static MatrixFilter whole_matrices(const OptimizerConfig& config) {
    return config.kind == OptimizerKind::kMuon ? MuonRule::takes : nullptr;
  }

  Optimizer(const OptimizerConfig& config, ShardedParameters& parameters, StateStream stream = StateStream());
  void plan(const StatePlan& moments);
  // Of the device, for moments and low bits that lie in its host's memory. With windows that have memory these go
  // through them.
  void plan_windows(Planner& windows);

  // One update of all parameters; then every rank has the new weights. It ends beside what is given next (the ranks'
  // exchange of what they have updated does): that must wait for the weights of a layer before it reads them, in the
  // order of layers, and for all before it changes gradients. Where state goes through windows all of it is enqueued by
  // these waits, layer by layer: inputs of the next step then do not stand behind all state on their way to the device,
  // nor kernels behind its copies in queues that hold a thousand.
  void update(Context& ctx, const UpdateStep& step);
  // What ctx is given from now on comes behind the update of all parameters of a layer (see layer_of), or of all.
  void wait_for_layer(Context& ctx, int64_t layer);
  void wait_for_update(Context& ctx);
  // Returns when moments and low bits are where slices() have them.
  void settle(Context& ctx);

  // What this rank stores of the moments in a checkpoint.
  std::vector<CheckpointSlice> slices();
  // The moments, from a checkpoint of any layout.   Errors: CheckpointError.
  void load(Context& ctx, const CheckpointReader& reader);

 private:
  const UpdateRule& rule(size_t group) const;
  std::vector<StoredMoment> stored_moments(size_t group) const;
  // Low bits, then moments.
  std::vector<StateTensor> state(size_t group);
  // Enqueues of an update through windows what is left of groups that begin at this layer or before.
  void pass_to(Context& ctx, int64_t layer);
  // The group's weights, on every rank, behind what the queue was given.
  void make_whole(Context& queue, size_t group);
  // Elements [begin, end) of the own shard of a group, with their state.
  void update_slice(Context& ctx, size_t group, int64_t begin, int64_t end, const std::vector<StateTensor>& state,
                    const UpdateStep& step);

  AdamWRule adamw_;
  MuonRule muon_;
  ShardedParameters& parameters_;
  std::vector<std::vector<Tensor>> moments_;  // per group and moment (shard_numel / elements_each)
  StateStream stream_;
  size_t first_away_ = 0;  // the group from which on state goes through windows, if these have memory
  struct Passing {
    UpdateStep step;
    Context* queue = nullptr;  // once it has begun
    size_t next_group = 0;
  };
  std::optional<Passing> passing_;  // an update through windows that is not enqueued as a whole
  struct Updated {
    int64_t first_layer, last_layer;  // of the group
    Milestone milestone;              // its weights are new, and whole on every rank
  };
  std::vector<Updated> updated_;  // per group
};

}  // namespace braid
