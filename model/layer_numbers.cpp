#include "model/layer_numbers.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/core/copy.h"

namespace braid {
namespace {

constexpr const char* kLayers = "layers.";

bool is_mtp(const Planner::Offer& offer) { return !offer.scope.starts_with(kLayers); }
int64_t layer_of(const Planner::Offer& offer) { return std::stoll(offer.scope.substr(std::string(kLayers).size())); }

// "moe/router_entropy" of "layers.3.mlp." -> "moe/layer_03/router_entropy"
std::string name_in_metrics(const Planner::Offer& offer) {
  std::string label = "mtp";
  if (!is_mtp(offer)) {
    const std::string number = std::to_string(layer_of(offer));
    label = "layer_" + (number.size() < 2 ? "0" + number : number);
  }
  const size_t slash = offer.name.find('/');
  return offer.name.substr(0, slash + 1) + label + offer.name.substr(slash);
}

}  // namespace

void LayerNumbers::plan(Planner& planner) {
  taken_.clear();
  std::vector<std::string> known;
  for (const Planner::Offer& offer : planner.take_offers()) {
    if (std::find(known.begin(), known.end(), offer.name) == known.end()) known.push_back(offer.name);
    if (std::find(wanted_.begin(), wanted_.end(), offer.name) != wanted_.end()) taken_.push_back(offer);
  }
  for (const std::string& name : wanted_) {
    std::string list;
    for (const std::string& other : known) list += (list.empty() ? "" : ", ") + other;
    check<ConfigError>(std::find(known.begin(), known.end(), name) != known.end(),
                       "log.metrics: no layer of this model ", "has a number called ", name, "; there are ", list);
  }
  if (!taken_.empty()) planner.add("numbers", values_, {static_cast<int64_t>(taken_.size())}, DType::kF64);
}

void LayerNumbers::begin_step() {
  sums_.clear();
  for (size_t i = 0; i < taken_.size(); ++i) {
    *taken_[i].slot = values_.rows(static_cast<int64_t>(i), static_cast<int64_t>(i) + 1);
    sums_.push_back(taken_[i].kind == NumberKind::kLargest ? -std::numeric_limits<double>::infinity() : 0);
  }
  micro_batches_ = 0;
}

void LayerNumbers::collect(Context& ctx, const LayerNumbers& other) {
  if (taken_.empty()) return;
  std::vector<double> values(taken_.size());
  copy(ctx, Tensor::of(values.data(), values_.shape()), other.values_);
  for (size_t i = 0; i < taken_.size(); ++i)
    sums_[i] = taken_[i].kind == NumberKind::kLargest ? std::max(sums_[i], values[i]) : sums_[i] + values[i];
  ++micro_batches_;
}

std::vector<NamedNumber> LayerNumbers::end_step(Context& ctx, Communicator& world,
                                                const std::vector<int64_t>& tokens_per_layer) {
  std::vector<NamedNumber> numbers;
  if (taken_.empty()) return numbers;
  std::vector<double> largest = sums_;
  const Shape shape = values_.shape();
  world.all_reduce(ctx, Tensor::of(sums_.data(), shape), ReduceOp::kSum);
  world.all_reduce(ctx, Tensor::of(largest.data(), shape), ReduceOp::kMax);
  for (size_t i = 0; i < taken_.size(); ++i) {
    const Planner::Offer& offer = taken_[i];
    double value = largest[i];
    if (offer.kind == NumberKind::kTokenMean) {
      const int64_t tokens = is_mtp(offer) ? tokens_per_layer.back() : tokens_per_layer[layer_of(offer)];
      value = tokens > 0 ? sums_[i] / double(tokens) : 0;
    } else if (offer.kind == NumberKind::kRootMeanSquare) {
      value = std::sqrt(sums_[i] / (double(offer.elements) * double(micro_batches_) * world.size()));
    }
    numbers.push_back({name_in_metrics(offer), value});
  }
  return numbers;
}

}  // namespace braid
