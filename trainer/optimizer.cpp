#include "trainer/optimizer.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/adamw.h"
#include "kernels/sum_squares.h"
#include "trainer/weight_source.h"

namespace braid {
namespace {

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
    : config_(config), layout_(std::move(layout)), world_(mesh.world()) {
  groups_[0] = {&layout_.dense(), &mesh.world()};
  groups_[1] = {&layout_.expert(), &mesh.expert_data()};
  for (Group& g : groups_) g.weights = Tensor(nullptr, dtype, {g.flat->numel});
}

void ShardedAdamW::plan(Planner& weights, Planner& gradients, Planner& moments) {
  for (Group& g : groups_) {
    const DType dtype = g.weights.dtype();
    const std::string prefix = g.flat->owner == Owner::kExpertRank ? "expert." : "dense.";
    weights.add(prefix + "weights", g.weights, {g.flat->numel}, dtype);
    gradients.add(prefix + "gradients", g.gradients, {g.flat->numel}, dtype);
    gradients.add(prefix + "shard_gradient", g.shard_gradient, {g.flat->shard_numel}, dtype);
    moments.add(prefix + "exp_avg", g.exp_avg, {g.flat->shard_numel}, dtype);
    moments.add(prefix + "exp_avg_sq", g.exp_avg_sq, {g.flat->shard_numel}, dtype);
  }
}

void ShardedAdamW::bind(ModelParams& weights, ModelParams& gradients) {
  layout_.bind(weights, groups_[0].weights, groups_[1].weights);
  layout_.bind(gradients, groups_[0].gradients, groups_[1].gradients);
}

void ShardedAdamW::zero_gradients() {
  for (Group& g : groups_) std::memset(g.gradients.raw(), 0, g.gradients.bytes());
}

void ShardedAdamW::reduce_gradients(Context& ctx) {
  for (Group& g : groups_) g.ranks->reduce_scatter(ctx, g.shard_gradient, g.gradients, ReduceOp::kSum);
}

double ShardedAdamW::global_norm(Context& ctx) {
  Scratch scratch(ctx);
  Tensor sums = scratch.tensor({2}, DType::kF64);
  for (int i = 0; i < 2; ++i) sum_squares(ctx, sums.rows(i, i + 1), groups_[i].shard_gradient);
  // Every element of either kind lies in exactly one shard of the world.
  world_.all_reduce(ctx, sums, ReduceOp::kSum);
  return std::sqrt(sums.data<double>()[0] + sums.data<double>()[1]);
}

template <class Body>
void ShardedAdamW::for_each_in_shard(const Group& group, Body&& body) const {
  const int64_t first = group.shard_first(), last = first + group.flat->shard_numel;
  for (const FlatParameter& p : group.flat->parameters) {
    const int64_t begin = std::max(first, p.offset), end = std::min(last, p.offset + p.local_numel);
    if (begin < end) body(p, begin, end);
  }
}

void ShardedAdamW::update(Context& ctx, double lr, double gradient_scale, int64_t step) {
  for (Group& g : groups_) {
    const int64_t first = g.shard_first();
    for_each_in_shard(g, [&](const FlatParameter& p, int64_t begin, int64_t end) {
      const bool decay = decays(p.parameter.decay, config_.norm_weight_decay);
      auto shard_rows = [&](Tensor& t) { return t.rows(begin - first, end - first); };
      adamw_update(
          ctx, g.weights.rows(begin, end), shard_rows(g.exp_avg), shard_rows(g.exp_avg_sq),
          shard_rows(g.shard_gradient),
          {lr, config_.beta1, config_.beta2, config_.eps, decay ? config_.weight_decay : 0, gradient_scale, step});
    });
    g.ranks->all_gather(ctx, g.weights, g.weights.rows(first, first + g.flat->shard_numel));
  }
}

std::vector<CheckpointSlice> ShardedAdamW::slices() {
  std::vector<CheckpointSlice> slices;
  for (Group& g : groups_) {
    const int64_t first = g.shard_first();
    for_each_in_shard(g, [&](const FlatParameter& p, int64_t begin, int64_t end) {
      slices.push_back(slice_of("weights", p, begin, end, g.weights.rows(begin, end)));
      slices.push_back(slice_of("exp_avg", p, begin, end, g.exp_avg.rows(begin - first, end - first)));
      slices.push_back(slice_of("exp_avg_sq", p, begin, end, g.exp_avg_sq.rows(begin - first, end - first)));
    });
  }
  return slices;
}

void ShardedAdamW::load(const CheckpointReader& reader) {
  load_weights(reader, layout_, groups_[0].weights, groups_[1].weights);
  for (Group& g : groups_) {
    const int64_t first = g.shard_first();
    for_each_in_shard(g, [&](const FlatParameter& p, int64_t begin, int64_t end) {
      auto exp_avg = slice_of("exp_avg", p, begin, end, g.exp_avg.rows(begin - first, end - first));
      auto exp_avg_sq = slice_of("exp_avg_sq", p, begin, end, g.exp_avg_sq.rows(begin - first, end - first));
      reader.read(exp_avg);
      reader.read(exp_avg_sq);
    });
  }
}

}  // namespace braid
