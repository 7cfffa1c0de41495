#include "trainer/optimizer/optimizer.h"

#include <algorithm>
#include <limits>

#include "kernels/core/profile.h"
#include "trainer/checkpoint/device_slices.h"

namespace braid {

constexpr int64_t kBehindAllLayers = std::numeric_limits<int64_t>::max();

Optimizer::Optimizer(const OptimizerConfig& config, ShardedParameters& parameters, StateStream stream)
    : adamw_(config),
      muon_(config),
      parameters_(parameters),
      moments_(parameters.num_groups()),
      stream_(std::move(stream)) {
  for (size_t i = 0; i < parameters.num_groups(); ++i) {
    const FlatGroup& group = parameters.group(i);
    updated_.push_back({group.complete_after, group.complete_after, {}});
    for (const FlatParameter& p : group.parameters)
      updated_[i].last_layer = std::max(updated_[i].last_layer, layer_of(p.parameter, kBehindAllLayers));
    assert(i == 0 || updated_[i - 1].first_layer <= updated_[i].first_layer);
  }
}

const UpdateRule& Optimizer::rule(size_t group) const {
  if (parameters_.group(group).cut == Cut::kBetweenMatrices) return muon_;
  return adamw_;
}

std::vector<StoredMoment> Optimizer::stored_moments(size_t group) const {
  return rule(group).moments(parameters_.group(group), parameters_.dtype());
}

void Optimizer::plan(const StatePlan& moments) {
  first_away_ = moments.first_away;
  for (size_t i = 0; i < moments_.size(); ++i) {
    const std::vector<StoredMoment> stored = stored_moments(i);
    const FlatGroup& group = parameters_.group(i);
    const Planner::Scope scope(moments.of(i), group.name + ".");
    moments_[i].resize(stored.size());
    for (size_t m = 0; m < stored.size(); ++m) {
      assert(group.shard_numel % stored[m].elements_each == 0);
      moments.of(i).add(stored[m].name, moments_[i][m], {group.shard_numel / stored[m].elements_each}, stored[m].dtype);
    }
  }
}

void Optimizer::plan_windows(Planner& windows) {
  for (size_t i = first_away_; i < moments_.size(); ++i) stream_.fit(parameters_.group(i).shard_numel, state(i));
  stream_.plan(windows);
}

std::vector<StateTensor> Optimizer::state(size_t group) {
  std::vector<StateTensor> state = {{parameters_.shard(group).low}};
  const std::vector<StoredMoment> stored = stored_moments(group);
  for (size_t m = 0; m < stored.size(); ++m) state.push_back({moments_[group][m], stored[m].elements_each});
  return state;
}

void Optimizer::update_slice(Context& ctx, size_t group, int64_t begin, int64_t end,
                             const std::vector<StateTensor>& state, const UpdateStep& step) {
  const ShardedParameters::Shard shard = parameters_.shard(group);
  for (const ShardedParameters::Piece& piece : parameters_.pieces(group)) {
    const int64_t first = std::max(begin, piece.begin), last = std::min(end, piece.end);
    if (first >= last) continue;
    std::vector<Tensor> parts;
    for (const StateTensor& s : state) parts.push_back(s.of(first - begin, last - begin));
    rule(group).update(ctx,
                       {piece.parameter(), shard.weights.rows(first, last), parts[0], shard.gradients.rows(first, last),
                        std::span(parts).subspan(1), piece.first + first - piece.begin},
                       step);
  }
}

void Optimizer::update(Context& ctx, const UpdateStep& step) {
  if (stream_.has_windows()) {
    assert(!passing_);
    passing_ = {step};
    return;
  }
  for (size_t i = 0; i < moments_.size(); ++i) {
    update_slice(ctx, i, 0, parameters_.group(i).shard_numel, state(i), step);
    ctx.side().wait_for(ctx);
    make_whole(ctx.side(), i);
  }
}

void Optimizer::make_whole(Context& queue, size_t group) {
  parameters_.gather_weights(queue, group);
  updated_[group].milestone.set(queue);
}

void Optimizer::pass_to(Context& ctx, int64_t layer) {
  if (!passing_) return;
  Context*& queue = passing_->queue;
  size_t& next = passing_->next_group;
  if (!queue) queue = &stream_.begin(ctx);
  for (; next < moments_.size() && updated_[next].first_layer <= layer; ++next) {
    const size_t i = next;
    const int64_t numel = parameters_.group(i).shard_numel;
    const auto work = [&](Context& on, int64_t begin, int64_t end, const std::vector<StateTensor>& state) {
      update_slice(on, i, begin, end, state, passing_->step);
    };
    if (i < first_away_) work(*queue, 0, numel, state(i));
    else stream_.pass(numel, state(i), work);
    make_whole(*queue, i);
  }
  if (next == moments_.size()) passing_.reset();
}

void Optimizer::wait_for_layer(Context& ctx, int64_t layer) {
  pass_to(ctx, layer + 1);  // the next one's passes beside this one
  const OperatorScope scope(ctx, "wait_for_weights");
  for (const Updated& group : updated_)
    if (group.first_layer <= layer && layer <= group.last_layer) group.milestone.hold(ctx);
}

void Optimizer::wait_for_update(Context& ctx) {
  pass_to(ctx, kBehindAllLayers);
  const OperatorScope scope(ctx, "wait_for_weights");
  for (const Updated& group : updated_) group.milestone.hold(ctx);
}

void Optimizer::settle(Context& ctx) {
  wait_for_update(ctx);
  stream_.settle();
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
  assert(!passing_);
  for (CheckpointSlice& slice : slices()) read_slice(ctx, reader, slice);
}

}  // namespace braid
