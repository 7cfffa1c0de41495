#include "trainer/optimizer/optimizer.h"

#include <algorithm>
#include <cmath>

#include "kernels/adamw.h"
#include "kernels/core/copy.h"
#include "kernels/core/profile.h"
#include "kernels/sum_squares.h"
#include "trainer/checkpoint/device_slices.h"

namespace braid {
namespace {

constexpr int64_t kEverything = -1;  // the layer that backward leaves last: the embedding

// Elements [begin, end) of the flat buffer, inside one parameter, as a slice of the logical tensor.
CheckpointSlice slice_of(const std::string& kind, const FlatParameter& p, int64_t begin, int64_t end, Tensor data) {
  const int64_t first = p.global_first + begin - p.offset;
  return {kind + "/" + p.parameter.name, p.parameter.shape, first, first + end - begin, data};
}

}  // namespace

bool decays(Decay group, NormWeightDecay policy) {
  switch (group) {
    case Decay::kYes: return true;
    case Decay::kQkNorm: return policy != NormWeightDecay::kNone;
    case Decay::kNorm: return policy == NormWeightDecay::kAllZeroCentred;
    case Decay::kNever: return false;
  }
  return false;
}

ShardedAdamW::ShardedAdamW(const OptimizerConfig& config, ParameterLayout layout, const ProcessMesh& mesh, DType dtype)
    : config_(config), layout_(std::move(layout)), world_(mesh.world()), activation_(dtype) {
  for (const FlatGroup& flat : layout_.groups()) {
    Communicator& ranks = flat.owner == Owner::kExpertRank ? mesh.expert_data() : mesh.world();
    shards_.push_back({&flat, &ranks, ranks.rank() * flat.shard_numel});
  }
}

void ShardedAdamW::plan(Planner& weights, Planner& gradients, Planner& state) {
  layout_.plan_weights(weights, weights_, activation_);
  layout_.plan_gradients(gradients, gradients_, activation_);
  const DType wide = wide_dtype(activation_);
  for (Shard& s : shards_) {
    Planner::Scope scope(state, s.flat->name + ".");
    if (s.flat->weight_dtype(activation_) != wide) state.add("master", s.master, {s.flat->shard_numel}, wide);
    const DType moments = config_.moment_dtype == MomentDType::kBf16 ? DType::kBF16 : wide;
    state.add("exp_avg", s.exp_avg, {s.flat->shard_numel}, moments);
    state.add("exp_avg_sq", s.exp_avg_sq, {s.flat->shard_numel}, moments);
  }
}

void ShardedAdamW::bind(ModelParams& weights, ModelParams& gradients) {
  layout_.bind(weights, weights_);
  layout_.bind(gradients, gradients_);
}

void ShardedAdamW::zero_gradients(Context& ctx) {
  for (Tensor& gradients : gradients_) fill_zero(ctx, gradients);
  for (Shard& shard : shards_) shard.reduced = false;
}

void ShardedAdamW::reduce_complete_gradients(Context& ctx, int64_t layer) {
  ctx.side().wait_for(ctx);
  for (size_t i = shards_.size(); i-- > 0;) {
    Shard& s = shards_[i];
    if (s.reduced || s.flat->complete_after < layer) continue;
    s.ranks->reduce_scatter(ctx.side(), s.of(gradients_[i]), gradients_[i], ReduceOp::kSum);
    s.reduced = true;
  }
}

void ShardedAdamW::reduce_gradients(Context& ctx) {
  reduce_complete_gradients(ctx, kEverything);
  const OperatorScope scope(ctx, "wait_for_gradients");
  ctx.wait_for(ctx.side());
}

double ShardedAdamW::global_norm(Context& ctx) {
  Scratch scratch(ctx);
  const int64_t groups = static_cast<int64_t>(shards_.size());
  Tensor sums = scratch.tensor({groups}, DType::kF64);
  for (int64_t i = 0; i < groups; ++i) sum_squares(ctx, sums.rows(i, i + 1), shards_[i].of(gradients_[i]));
  // Every element of either kind lies in exactly one shard of the world.
  world_.all_reduce(ctx, sums, ReduceOp::kSum);
  std::vector<double> squares(static_cast<size_t>(groups));
  copy(ctx, Tensor::of(squares.data(), {groups}), sums);
  double total = 0;
  for (double square : squares) total += square;
  return std::sqrt(total);
}

template <class Body>
void ShardedAdamW::for_each_parameter(const Shard& shard, Body&& body) const {
  for (const FlatParameter& p : shard.flat->parameters) {
    const int64_t begin = std::max(shard.first, p.offset);
    const int64_t end = std::min(shard.first + shard.flat->shard_numel, p.offset + p.local_numel);
    if (begin < end) body(p, begin, end);
  }
}

Tensor ShardedAdamW::master_of(size_t group) {
  Shard& s = shards_[group];
  return s.master.defined() ? s.master : s.of(weights_[group]);
}

void ShardedAdamW::update(Context& ctx, double lr, double gradient_scale, int64_t step) {
  for (size_t i = 0; i < shards_.size(); ++i) {
    Shard& s = shards_[i];
    Tensor master = master_of(i), gradients = s.of(gradients_[i]), weights = s.of(weights_[i]);
    for_each_parameter(s, [&](const FlatParameter& p, int64_t begin, int64_t end) {
      const bool decay = decays(p.parameter.decay, config_.norm_weight_decay);
      auto own = [&](Tensor& t) { return t.rows(begin - s.first, end - s.first); };
      adamw_update(
          ctx, {own(master), own(s.exp_avg), own(s.exp_avg_sq)}, s.master.defined() ? own(weights) : Tensor(),
          own(gradients),
          {lr, config_.beta1, config_.beta2, config_.eps, decay ? config_.weight_decay : 0, gradient_scale, step});
    });
    s.ranks->all_gather(ctx, weights_[i], weights);
  }
}

std::vector<CheckpointSlice> ShardedAdamW::slices() {
  std::vector<CheckpointSlice> slices;
  for (size_t i = 0; i < shards_.size(); ++i) {
    Shard& s = shards_[i];
    Tensor master = master_of(i);
    for_each_parameter(s, [&](const FlatParameter& p, int64_t begin, int64_t end) {
      auto own = [&](Tensor& t) { return t.rows(begin - s.first, end - s.first); };
      slices.push_back(slice_of("weights", p, begin, end, own(master)));
      slices.push_back(slice_of("exp_avg", p, begin, end, own(s.exp_avg)));
      slices.push_back(slice_of("exp_avg_sq", p, begin, end, own(s.exp_avg_sq)));
    });
  }
  return slices;
}

void ShardedAdamW::load_weights(Context& ctx, const WeightSource& source) {
  braid::load_weights(ctx, source, layout_, weights_);
  for (Shard& s : shards_) {
    if (!s.master.defined()) continue;
    for_each_parameter(s, [&](const FlatParameter& p, int64_t begin, int64_t end) {
      load_elements(ctx, source, p, begin, end, s.master.rows(begin - s.first, end - s.first));
    });
  }
}

void ShardedAdamW::load(Context& ctx, const CheckpointReader& reader) {
  load_weights(ctx, reader);
  for (Shard& s : shards_) {
    for_each_parameter(s, [&](const FlatParameter& p, int64_t begin, int64_t end) {
      auto own = [&](Tensor& t) { return t.rows(begin - s.first, end - s.first); };
      auto exp_avg = slice_of("exp_avg", p, begin, end, own(s.exp_avg));
      auto exp_avg_sq = slice_of("exp_avg_sq", p, begin, end, own(s.exp_avg_sq));
      read_slice(ctx, reader, exp_avg);
      read_slice(ctx, reader, exp_avg_sq);
    });
  }
}

}  // namespace braid
