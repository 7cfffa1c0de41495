#pragma once

#include <string>
#include <vector>

#include "kernels/core/arena.h"
#include "model/parameter_layout.h"
#include "parallel/process_mesh.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/optimizer_config.h"

namespace braid {

bool decays(Decay group, NormWeightDecay policy);

// Weights and gradients of this rank as flat buffers, and the AdamW state sharded over the ranks that hold copies of
// them (ZeRO stage 1): dense parameters over the world, experts over the expert-data group. A step is
//   reduce_gradients -> global_norm -> update
// Gradients are sums over the global batch already scaled by the loss, so reduction adds and never divides.
class ShardedAdamW {
 public:
  ShardedAdamW(const OptimizerConfig& config, ParameterLayout layout, const ProcessMesh& mesh, DType dtype);
  // Memory of weights, gradients and moments.
  void plan(Planner& weights, Planner& gradients, Planner& moments);

  const ParameterLayout& layout() const { return layout_; }
  Tensor& dense_weights() { return groups_[0].weights; }
  Tensor& expert_weights() { return groups_[1].weights; }
  void bind(ModelParams& weights, ModelParams& gradients);

  void zero_gradients();
  // Sums every gradient over the ranks that computed a part of it; each rank keeps its shard.
  void reduce_gradients(Context& ctx);
  // L2 norm over all parameters, each counted once; the same value on every rank. After reduce_gradients.
  double global_norm(Context& ctx);
  // AdamW update number `step` (1 = first) of the own shards, then all ranks' weights become whole again.
  void update(Context& ctx, double lr, double gradient_scale, int64_t step);

  // What this rank stores in a checkpoint: its shards of weights and moments.
  std::vector<CheckpointSlice> slices();
  // Fills all weights and the own shards of the moments from a checkpoint of any layout.
  void load(const CheckpointReader& reader);

 private:
  struct Group {
    const FlatGroup* flat;
    Communicator* ranks;                         // that share the buffer
    Tensor weights, gradients;                   // (numel)
    Tensor shard_gradient, exp_avg, exp_avg_sq;  // (shard_numel)
    int64_t shard_first() const { return ranks->rank() * flat->shard_numel; }
  };
  // Calls body(parameter, begin, end) with the flat range of every parameter that lies in the own shard of the group.
  template <class Body>
  void for_each_in_shard(const Group& group, Body&& body) const;

  OptimizerConfig config_;
  ParameterLayout layout_;
  Communicator& world_;
  Group groups_[2];
};

}  // namespace braid
