#include "trainer/optimizer/optimizer.h"

#include "trainer/checkpoint/device_slices.h"

namespace braid {

Optimizer::Optimizer(const OptimizerConfig& config, ShardedParameters& parameters)
    : adamw_(config), muon_(config), parameters_(parameters), moments_(parameters.num_groups()) {}

const UpdateRule& Optimizer::rule(size_t group) const {
  if (parameters_.group(group).cut == Cut::kBetweenMatrices) return muon_;
  return adamw_;
}

std::vector<StoredMoment> Optimizer::stored_moments(size_t group) const {
  return rule(group).moments(parameters_.group(group), parameters_.dtype());
}

void Optimizer::plan(Planner& moments) {
  for (size_t i = 0; i < moments_.size(); ++i) {
    const std::vector<StoredMoment> stored = stored_moments(i);
    const FlatGroup& group = parameters_.group(i);
    const Planner::Scope scope(moments, group.name + ".");
    moments_[i].resize(stored.size());
    for (size_t m = 0; m < stored.size(); ++m) {
      assert(group.shard_numel % stored[m].elements_each == 0);
      moments.add(stored[m].name, moments_[i][m], {group.shard_numel / stored[m].elements_each}, stored[m].dtype);
    }
  }
}

void Optimizer::update(Context& ctx, const UpdateStep& step) {
  for (size_t i = 0; i < moments_.size(); ++i) {
    const ShardedParameters::Shard shard = parameters_.shard(i);
    const std::vector<StoredMoment> stored = stored_moments(i);
    for (const ShardedParameters::Piece& piece : parameters_.pieces(i)) {
      std::vector<Tensor> moments;
      for (size_t m = 0; m < stored.size(); ++m) moments.push_back(piece.of(moments_[i][m], stored[m].elements_each));
      rule(i).update(ctx,
                     {piece.parameter(), piece.of(shard.weights), piece.of(shard.low), piece.of(shard.gradients),
                      moments, piece.first},
                     step);
    }
    parameters_.gather_weights(ctx, i);
  }
}

std::vector<CheckpointSlice> Optimizer::slices() {
  std::vector<CheckpointSlice> slices;
  for (size_t i = 0; i < moments_.size(); ++i) {
    const std::vector<StoredMoment> stored = stored_moments(i);
    for (const ShardedParameters::Piece& piece : parameters_.pieces(i))
      for (size_t m = 0; m < stored.size(); ++m)
        slices.push_back(piece.slice(stored[m].name, moments_[i][m], stored[m].elements_each));
  }
  return slices;
}

void Optimizer::load(Context& ctx, const CheckpointReader& reader) {
  for (CheckpointSlice& slice : slices()) read_slice(ctx, reader, slice);
}

}  // namespace braid
