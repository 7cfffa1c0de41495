#pragma once

#include <string>
#include <vector>

#include "kernels/core/arena.h"
#include "model/weight_source.h"
#include "parallel/process_mesh.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/optimizer/optimizer_config.h"

namespace braid {

bool decays(Decay group, NormWeightDecay policy);

// Weights and gradients of this rank as flat buffers, and the AdamW state sharded over the ranks that hold copies of
// them (ZeRO stage 1): dense parameters over the world, experts over the expert-data group. Weights stored in bf16 have
// an fp32 master in the state, from which they are rounded after every update. A step is
//   zero_gradients -> backward (behind each layer reduce_complete_gradients) -> reduce_gradients -> global_norm ->
//   update
// Gradients are sums over the global batch already scaled by the loss, so reduction adds and never divides.
class ShardedAdamW {
 public:
  ShardedAdamW(const OptimizerConfig& config, ParameterLayout layout, const ProcessMesh& mesh, DType dtype);
  // Memory of weights, gradients and the state: masters and moments.
  void plan(Planner& weights, Planner& gradients, Planner& state);
  void bind(ModelParams& weights, ModelParams& gradients);

  void zero_gradients(Context& ctx);
  // Sums gradients over the ranks that computed a part of them; each rank keeps its shard. The first call may be left
  // out; after it, the transfers run beside what ctx is given next.
  void reduce_complete_gradients(Context& ctx, int64_t layer);  // those that no layer before this one adds to
  void reduce_gradients(Context& ctx);                          // all that are left
  // L2 norm over all parameters, each counted once; the same value on every rank. After reduce_gradients.
  double global_norm(Context& ctx);
  // AdamW update number `step` (1 = first) of the own shards, then all ranks' weights become whole again.
  void update(Context& ctx, double lr, double gradient_scale, int64_t step);

  // What this rank stores in a checkpoint: its shards of weights and moments.
  std::vector<CheckpointSlice> slices();
  // Weights alone; the moments stay what they are.
  void load_weights(Context& ctx, const WeightSource& source);
  // Fills all weights and the own shards of the state from a checkpoint of any layout.
  void load(Context& ctx, const CheckpointReader& reader);

 private:
  // The own shard of a group of parameters.
  struct Shard {
    const FlatGroup* flat;
    Communicator* ranks;         // that share the buffer
    int64_t first;               // element of the flat buffer
    Tensor master;               // (shard_numel); not defined where the weights themselves are as wide
    Tensor exp_avg, exp_avg_sq;  // (shard_numel)
    bool reduced = false;        // the gradients of this step
    Tensor of(Tensor& flat_tensor) const { return flat_tensor.rows(first, first + flat->shard_numel); }
  };
  // Calls body(parameter, begin, end) with the flat range of every parameter that lies in the shard.
  template <class Body>
  void for_each_parameter(const Shard& shard, Body&& body) const;
  // The weights that are updated: the master, or where there is none the shard of the weights.
  Tensor master_of(size_t group);

  OptimizerConfig config_;
  ParameterLayout layout_;
  Communicator& world_;
  DType activation_;
  std::vector<Shard> shards_;                // per group of the layout
  std::vector<Tensor> weights_, gradients_;  // per group (numel)
};

}  // namespace braid
