#pragma once

#include <string>
#include <vector>

#include "kernels/core/arena.h"
#include "kernels/matmul.h"
#include "model/layer_numbers.h"
#include "model/weight_source.h"
#include "parallel/process_mesh.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/optimizer/optimizer_config.h"
#include "trainer/optimizer/state_stream.h"

namespace braid {

// Weights and gradients of this rank as flat buffers, one per group of the layout, of which it owns a shard: the ranks
// that hold copies of a parameter share its update between them (ZeRO stage 1), dense parameters over the world,
// experts over the expert-data group. Beside weights stored in bf16 it keeps the low bits of the own shard, with which
// they are fp32 masters (kernels/split_weights.h). A step is
//   zero_gradients -> backward (behind each layer reduce_complete_gradients) -> reduce_gradients -> global_norm ->
//   an update of the own shards -> gather_weights
// Gradients are sums over the global batch already scaled by the loss, so reduction adds and never divides.
class ShardedParameters {
 public:
  ShardedParameters(ParameterLayout layout, const ProcessMesh& mesh, DType activation,
                    GradientDType gradients = GradientDType::kFp32);
  ShardedParameters(const ShardedParameters&) = delete;
  ShardedParameters& operator=(const ShardedParameters&) = delete;
  void plan(Planner& weights, Planner& gradients, const StatePlan& low_bits);
  void bind(ModelParams& weights, ModelParams& gradients);

  // With `experts` kNo those of the experts stay as they are, for a backward that overwrites them.
  void zero_gradients(Context& ctx, Accumulate experts = Accumulate::kYes);
  // Sums gradients over the ranks that computed a part of them; each rank keeps its shard, and adds up its squares. The
  // first call may be left out; after it, all that runs beside what ctx is given next.
  // Those that no layer before this one adds to, when `behind` has made them.
  void reduce_complete_gradients(Context& ctx, Context& behind, int64_t layer);
  void reduce_gradients(Context& ctx);  // all that are left
  // L2 norm over all parameters, each counted once; the same value on every rank. After reduce_gradients.
  double global_norm(Context& ctx);
  // The same of all layers' parameters of one name: "mlp.experts.down_proj". After reduce_gradients.
  std::vector<NamedNumber> norms_by_name(Context& ctx);
  // The shards that the ranks have updated become whole again.
  void gather_weights(Context& ctx, size_t group);

  // What lies of a parameter in the own shard.
  struct Piece {
    const FlatParameter* in;
    int64_t begin, end;  // of the shard
    int64_t first;       // index of its first element in the whole tensor
    const Parameter& parameter() const { return in->parameter; }
    Tensor of(Tensor shard) const { return shard.defined() ? shard.rows(begin, end) : shard; }
    // Of a shard with one number for so many elements, a multiple of which begin, first and every shard are.
    Tensor of(Tensor shard, int64_t elements_each) const;
    // Of a tensor like the weights, called "<kind>/<name>" in a checkpoint; `shard` as it lies on this rank. With one
    // number for more than one element it has one axis.
    CheckpointSlice slice(const std::string& kind, Tensor shard, int64_t elements_each = 1) const;
    // Of masters in two tensors.
    CheckpointSlice slice(const std::string& kind, Tensor weights, Tensor low) const;
  };
  // The own shard of a group.
  struct Shard {
    Tensor weights;    // (shard_numel)
    Tensor low;        // (shard_numel, 2)  of their masters; not defined beside weights that are their own
    Tensor gradients;  // (shard_numel)
  };
  size_t num_groups() const { return groups_.size(); }
  // How many of the first groups hold together at most this share of the elements of own shards.
  size_t leading_groups(double share) const;
  const FlatGroup& group(size_t i) const { return *groups_[i].flat; }
  const std::vector<Piece>& pieces(size_t group) const { return groups_[group].pieces; }  // the rest is padding
  Shard shard(size_t group);
  DType dtype() const { return wide_dtype(activation_); }  // of the masters
  DType stored_dtype(size_t group) const {
    return groups_[group].flat->weight_dtype(activation_);
  }  // and computed with

  // What this rank stores of the weights in a checkpoint: the masters, or what a model computes with.
  enum class Stored { kMasters, kComputedWith };
  std::vector<CheckpointSlice> slices(Stored stored = Stored::kMasters);
  // The own shards, low bits included: no other rank takes part.
  // Errors: CheckpointError of the source.
  void load_shards(Context& ctx, const WeightSource& source);
  void gather_all_weights(Context& ctx);
  void load(Context& ctx, const WeightSource& source) {
    load_shards(ctx, source);
    gather_all_weights(ctx);
  }

 private:
  struct Group {
    const FlatGroup* flat;
    Communicator* ranks;        // that share the buffer
    int64_t first;              // element of the buffer where the own shard begins
    std::vector<Piece> pieces;  // of the own shard
    Tensor low;                 // (shard_numel, 2)  see Shard
    bool reduced = false;       // the gradients of this step
    Tensor own(Tensor& flat_tensor) const { return flat_tensor.rows(first, first + flat->shard_numel); }
  };

  ParameterLayout layout_;
  Communicator& world_;
  DType activation_;
  GradientDType gradient_dtype_;
  std::vector<Group> groups_;
  std::vector<Tensor> weights_, gradients_;  // per group (numel)
  Tensor squares_;                           // (groups) F64  sums over the own shards of gradients, made as these are
};

}  // namespace braid
