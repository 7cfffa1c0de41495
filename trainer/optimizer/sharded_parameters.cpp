#include "trainer/optimizer/sharded_parameters.h"

#include <algorithm>
#include <cmath>

#include "kernels/core/copy.h"
#include "kernels/core/memory.h"
#include "kernels/core/profile.h"
#include "kernels/sum_squares.h"
#include "parallel/rounded_reduction.h"

namespace braid {
namespace {

constexpr int64_t kEverything = -1;  // the layer that backward leaves last: the embedding

// The parts of a group's parameters between two elements of its flat buffer.
std::vector<ShardedParameters::Piece> pieces_between(const FlatGroup& flat, int64_t first, int64_t last) {
  std::vector<ShardedParameters::Piece> pieces;
  for (const FlatParameter& p : flat.parameters) {
    const int64_t begin = std::max(first, p.offset), end = std::min(last, p.offset + p.local_numel);
    if (begin < end) pieces.push_back({&p, begin - first, end - first, p.global_first + begin - p.offset});
  }
  return pieces;
}

// model.layers.3.mlp.gate.weight -> mlp.gate;  mtp.layers.0.mlp.gate.weight -> mtp.mlp.gate
std::string name_over_layers(std::string name) {
  if (name.starts_with("model.")) name.erase(0, 6);
  if (name.ends_with(".weight")) name.resize(name.size() - 7);
  if (const size_t at = name.find("layers."); at != std::string::npos) name.erase(at, name.find('.', at + 7) + 1 - at);
  return name;
}

}  // namespace

Tensor ShardedParameters::Piece::of(Tensor shard, int64_t elements_each) const {
  assert(begin % elements_each == 0 && first % elements_each == 0);
  return StateTensor{shard, elements_each}.of(begin, end);
}

CheckpointSlice ShardedParameters::Piece::slice(const std::string& kind, Tensor shard, int64_t elements_each) const {
  const Shape shape = elements_each == 1 ? parameter().shape
                                         : Shape{round_up(parameter().shape.numel(), elements_each) / elements_each};
  const int64_t behind = round_up(first + end - begin, elements_each) / elements_each;
  return {concat(kind, '/', parameter().name), shape, first / elements_each, behind, of(shard, elements_each)};
}

CheckpointSlice ShardedParameters::Piece::slice(const std::string& kind, Tensor weights, Tensor low) const {
  if (!low.defined()) return slice(kind, weights);
  CheckpointSlice slice = this->slice(kind, Tensor(nullptr, DType::kF32, weights.shape(), weights.device()));
  slice.split_weight = of(weights);
  slice.split_low = of(low);
  return slice;
}

ShardedParameters::ShardedParameters(ParameterLayout layout, const ProcessMesh& mesh, DType activation,
                                     GradientDType gradients)
    : layout_(std::move(layout)), world_(mesh.world()), activation_(activation), gradient_dtype_(gradients) {
  for (const FlatGroup& flat : layout_.groups()) {
    Communicator& ranks = flat.owner == Owner::kExpertRank ? mesh.expert_data() : mesh.world();
    const int64_t first = ranks.rank() * flat.shard_numel;
    groups_.push_back({&flat, &ranks, first, pieces_between(flat, first, first + flat.shard_numel)});
  }
}

void ShardedParameters::plan(Planner& weights, Planner& gradients, const StatePlan& low_bits) {
  layout_.plan_weights(weights, weights_, activation_);
  layout_.plan_gradients(gradients, gradients_, activation_,
                         gradient_dtype_ == GradientDType::kBf16 ? DType::kBF16 : dtype());
  gradients.add("squares", squares_, {std::ssize(groups_)}, DType::kF64);
  for (size_t i = 0; i < groups_.size(); ++i) {
    Group& g = groups_[i];
    if (stored_dtype(i) != dtype())
      low_bits.of(i).add(g.flat->name + ".low_bits", g.low, {g.flat->shard_numel, 2}, DType::kU8);
  }
}

size_t ShardedParameters::leading_groups(double share) const {
  double left = 0;
  for (const Group& g : groups_) left += share * double(g.flat->shard_numel);
  size_t count = 0;
  for (; count < groups_.size() && double(groups_[count].flat->shard_numel) <= left; ++count)
    left -= double(groups_[count].flat->shard_numel);
  return count;
}

void ShardedParameters::bind(ModelParams& weights, ModelParams& gradients) {
  layout_.bind(weights, weights_);
  layout_.bind(gradients, gradients_);
}

void ShardedParameters::zero_gradients(Context& ctx, Accumulate experts) {
  for (size_t i = 0; i < groups_.size(); ++i) {
    groups_[i].reduced = false;
    if (experts == Accumulate::kYes || groups_[i].flat->owner != Owner::kExpertRank) fill_zero(ctx, gradients_[i]);
  }
}

void ShardedParameters::reduce_complete_gradients(Context& ctx, Context& behind, int64_t layer) {
  ctx.side().wait_for(behind);
  for (size_t i = groups_.size(); i-- > 0;) {
    Group& g = groups_[i];
    if (g.reduced || g.flat->complete_after < layer) continue;
    reduce_scatter_rounded(ctx.side(), *g.ranks, g.own(gradients_[i]), gradients_[i]);
    sum_squares(ctx.side(), squares_.rows(int64_t(i), int64_t(i) + 1), g.own(gradients_[i]));
    g.reduced = true;
  }
}

void ShardedParameters::reduce_gradients(Context& ctx) {
  reduce_complete_gradients(ctx, ctx, kEverything);
  const OperatorScope scope(ctx, "wait_for_gradients");
  ctx.wait_for(ctx.side());
}

double ShardedParameters::global_norm(Context& ctx) {
  Scratch scratch(ctx);
  const int64_t num_groups = static_cast<int64_t>(groups_.size());
  Tensor sums = scratch.tensor({num_groups}, DType::kF64);
  copy(ctx, sums, squares_);
  // Every element of either kind lies in exactly one shard of the world.
  world_.all_reduce(ctx, sums, ReduceOp::kSum);
  std::vector<double> squares(groups_.size());
  copy(ctx, Tensor::of(squares.data(), {num_groups}), sums);
  double total = 0;
  for (double square : squares) total += square;
  return std::sqrt(total);
}

std::vector<NamedNumber> ShardedParameters::norms_by_name(Context& ctx) {
  std::vector<NamedNumber> numbers;  // the same on every rank, which holds only some of the pieces
  auto number_of = [&](const Parameter& parameter) -> size_t {
    const std::string name = name_over_layers(parameter.name);
    for (size_t i = 0; i < numbers.size(); ++i)
      if (numbers[i].name == name) return i;
    numbers.push_back({name, 0});
    return numbers.size() - 1;
  };
  int64_t num_pieces = 0;
  for (const Group& g : groups_) {
    for (const FlatParameter& p : g.flat->parameters) number_of(p.parameter);
    num_pieces += static_cast<int64_t>(g.pieces.size());
  }

  Scratch scratch(ctx);
  Tensor sums = scratch.tensor({num_pieces}, DType::kF64);
  int64_t at = 0;
  for (size_t i = 0; i < groups_.size(); ++i) {
    for (const Piece& piece : groups_[i].pieces) {
      sum_squares(ctx, sums.rows(at, at + 1), piece.of(groups_[i].own(gradients_[i])));
      ++at;
    }
  }
  std::vector<double> of_pieces(static_cast<size_t>(num_pieces)), squares(numbers.size());
  copy(ctx, Tensor::of(of_pieces.data(), {num_pieces}), sums);
  at = 0;
  for (const Group& g : groups_)
    for (const Piece& piece : g.pieces) squares[number_of(piece.parameter())] += of_pieces[at++];
  world_.all_reduce(ctx, Tensor::of(squares.data(), {static_cast<int64_t>(squares.size())}), ReduceOp::kSum);
  for (size_t i = 0; i < numbers.size(); ++i) numbers[i].value = std::sqrt(squares[i]);
  return numbers;
}

void ShardedParameters::gather_weights(Context& ctx, size_t group) {
  Group& g = groups_[group];
  g.ranks->all_gather(ctx, weights_[group], g.own(weights_[group]));
}

ShardedParameters::Shard ShardedParameters::shard(size_t group) {
  Group& g = groups_[group];
  return {g.own(weights_[group]), g.low, g.own(gradients_[group])};
}

std::vector<CheckpointSlice> ShardedParameters::slices(Stored stored) {
  std::vector<CheckpointSlice> slices;
  for (size_t i = 0; i < groups_.size(); ++i) {
    const Shard own = shard(i);
    const Tensor low = stored == Stored::kMasters ? own.low : Tensor();
    for (const Piece& piece : groups_[i].pieces) slices.push_back(piece.slice("weights", own.weights, low));
  }
  return slices;
}

void ShardedParameters::load_shards(Context& ctx, const WeightSource& source) {
  for (size_t i = 0; i < groups_.size(); ++i) {
    const Shard own = shard(i);
    for (const Piece& piece : groups_[i].pieces) {
      load_elements(ctx, source, *piece.in, groups_[i].first + piece.begin, groups_[i].first + piece.end,
                    piece.of(own.weights), piece.of(own.low));
    }
  }
}

void ShardedParameters::gather_all_weights(Context& ctx) {
  for (size_t i = 0; i < groups_.size(); ++i) gather_weights(ctx, i);
}

}  // namespace braid
