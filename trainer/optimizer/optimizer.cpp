#include "trainer/optimizer/optimizer.h"

#include "trainer/checkpoint/device_slices.h"

namespace braid {

Optimizer::Optimizer(const OptimizerConfig& config, ShardedParameters& parameters)
    : adamw_(config), muon_(config), parameters_(parameters), moments_(parameters.num_groups()) {}

const UpdateRule& Optimizer::rule(size_t group) const {
  if (parameters_.group(group).cut == Cut::kBetweenMatrices) return muon_;
  return adamw_;
}

void Optimizer::plan(Planner& moments) {
  for (size_t i = 0; i < moments_.size(); ++i) {
    const std::vector<std::string> names = rule(i).moments();
    const FlatGroup& group = parameters_.group(i);
    const Planner::Scope scope(moments, group.name + ".");
    moments_[i].resize(names.size());
    for (size_t m = 0; m < names.size(); ++m)
      moments.add(names[m], moments_[i][m], {group.shard_numel}, rule(i).moment_dtype(parameters_.dtype()));
  }
}

void Optimizer::update(Context& ctx, const UpdateStep& step) {
  for (size_t i = 0; i < moments_.size(); ++i) {
    const ShardedParameters::Shard shard = parameters_.shard(i);
    for (const ShardedParameters::Piece& piece : parameters_.pieces(i)) {
      std::vector<Tensor> moments;
      for (const Tensor& moment : moments_[i]) moments.push_back(piece.of(moment));
      rule(i).update(ctx,
                     {piece.parameter(), piece.of(shard.weights), piece.of(shard.low), piece.of(shard.gradients), moments,
                      piece.first},
                     step);
    }
    parameters_.gather_weights(ctx, i);
  }
}

std::vector<CheckpointSlice> Optimizer::slices() {
  std::vector<CheckpointSlice> slices;
  for (size_t i = 0; i < moments_.size(); ++i) {
    const std::vector<std::string> names = rule(i).moments();
    for (const ShardedParameters::Piece& piece : parameters_.pieces(i))
      for (size_t m = 0; m < names.size(); ++m) slices.push_back(piece.slice(names[m], moments_[i][m]));
  }
  return slices;
}

void Optimizer::load(Context& ctx, const CheckpointReader& reader) {
  for (CheckpointSlice& slice : slices()) read_slice(ctx, reader, slice);
}

}  // namespace braid
