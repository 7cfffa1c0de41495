#include "trainer/optimizer/optimizer.h"

#include "trainer/checkpoint/device_slices.h"
#include "trainer/optimizer/adamw_rule.h"

namespace braid {

Optimizer::Optimizer(const OptimizerConfig& config, ShardedParameters& parameters)
    : rule_(std::make_unique<AdamWRule>(config)), parameters_(parameters), moments_(parameters.num_groups()) {}

void Optimizer::plan(Planner& moments) {
  const std::vector<std::string> names = rule_->moments();
  for (size_t i = 0; i < moments_.size(); ++i) {
    const FlatGroup& group = parameters_.group(i);
    const Planner::Scope scope(moments, group.name + ".");
    moments_[i].resize(names.size());
    for (size_t m = 0; m < names.size(); ++m)
      moments.add(names[m], moments_[i][m], {group.shard_numel}, rule_->moment_dtype(parameters_.dtype()));
  }
}

void Optimizer::update(Context& ctx, const UpdateStep& step) {
  for (size_t i = 0; i < moments_.size(); ++i) {
    const ShardedParameters::Shard shard = parameters_.shard(i);
    for (const ShardedParameters::Piece& piece : parameters_.pieces(i)) {
      std::vector<Tensor> moments;
      for (const Tensor& moment : moments_[i]) moments.push_back(piece.of(moment));
      rule_->update(ctx,
                    {piece.parameter(), piece.of(shard.weights),
                     shard.rounded.defined() ? piece.of(shard.rounded) : Tensor(), piece.of(shard.gradients), moments},
                    step);
    }
    parameters_.gather_weights(ctx, i);
  }
}

std::vector<CheckpointSlice> Optimizer::slices() {
  const std::vector<std::string> names = rule_->moments();
  std::vector<CheckpointSlice> slices;
  for (size_t i = 0; i < moments_.size(); ++i)
    for (const ShardedParameters::Piece& piece : parameters_.pieces(i))
      for (size_t m = 0; m < names.size(); ++m) slices.push_back(piece.slice(names[m], moments_[i][m]));
  return slices;
}

void Optimizer::load(Context& ctx, const CheckpointReader& reader) {
  for (CheckpointSlice& slice : slices()) read_slice(ctx, reader, slice);
}

}  // namespace braid
