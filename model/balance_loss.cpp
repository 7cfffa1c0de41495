#include "model/balance_loss.h"

#include <algorithm>
#include <cstring>

namespace braid {

BalanceLoss::BalanceLoss(const BalanceConfig& config, int64_t num_layers, int64_t num_experts, Communicator& world)
    : config_(config), num_layers_(num_layers), num_experts_(num_experts), world_(world), d_prob_(num_layers) {}

void BalanceLoss::plan(Planner& planner, int64_t num_rows) {
  for (int64_t layer = 0; layer < num_layers_; ++layer)
    planner.add("d_prob." + std::to_string(layer), d_prob_[layer], {num_rows, num_experts_}, DType::kF64);
  planner.add("step_counts", step_counts_, {num_layers_, num_experts_}, DType::kI64);
  planner.add("shared_counts", shared_counts_, {num_layers_, num_experts_}, DType::kI64);
  planner.add("previous_counts", previous_counts_, {num_layers_, num_experts_}, DType::kI64);
  planner.add("sums", sums_, {2}, DType::kF64);
  planner.add("shares", shares_, {num_experts_}, DType::kF64);
}

void BalanceLoss::begin_step(const std::vector<int64_t>& tokens_per_layer) {
  tokens_ = tokens_per_layer;
  std::memset(step_counts_.raw(), 0, step_counts_.bytes());
  std::memset(sums_.raw(), 0, sums_.bytes());
}

bool BalanceLoss::counts_come_first(int64_t micro_batches) const {
  return config_.scope == BalanceScope::kGlobalBatch && config_.counts == BalanceCounts::kExact && micro_batches > 1;
}

void BalanceLoss::count(const std::vector<const RouterOutputs*>& layers) {
  for (int64_t layer = 0; layer < num_layers_; ++layer) {
    const Tensor& counts = layers[layer]->counts;
    int64_t* total = step_counts_.data<int64_t>() + layer * num_experts_;
    for (int64_t row = 0; row < counts.dim(0); ++row)
      for (int64_t e = 0; e < num_experts_; ++e) total[e] += counts.data<int64_t>()[row * num_experts_ + e];
  }
}

void BalanceLoss::load_shares(const int64_t* counts, double* shares) const {
  int64_t total = 0;
  for (int64_t e = 0; e < num_experts_; ++e) total += counts[e];
  for (int64_t e = 0; e < num_experts_; ++e)
    shares[e] = total > 0 ? double(counts[e]) / double(total) : 1.0 / double(num_experts_);
}

void BalanceLoss::prepare_backward(Context& ctx, const std::vector<const RouterOutputs*>& layers) {
  const int64_t E = num_experts_;
  const bool global = config_.scope == BalanceScope::kGlobalBatch;
  const bool previous = global && config_.counts == BalanceCounts::kPreviousStep;
  if (global && !previous) {
    std::memcpy(shared_counts_.raw(), step_counts_.raw(), step_counts_.bytes());
    world_.all_reduce(ctx, shared_counts_, ReduceOp::kSum);
  }
  double* f = shares_.data<double>();
  double* sums = sums_.data<double>();
  for (int64_t layer = 0; layer < num_layers_; ++layer) {
    const RouterOutputs& router = *layers[layer];
    const int64_t B = router.counts.dim(0);
    const int64_t* counts = router.counts.data<int64_t>();
    const double per_token = tokens_[layer] > 0 ? 1.0 / double(tokens_[layer]) : 0;
    if (global) {
      load_shares((previous ? previous_counts_ : shared_counts_).data<int64_t>() + layer * E, f);
    } else if (config_.scope == BalanceScope::kMicroBatch) {
      std::vector<int64_t> all_rows(E, 0);
      for (int64_t i = 0; i < B * E; ++i) all_rows[i % E] += counts[i];
      load_shares(all_rows.data(), f);
    }
    for (int64_t row = 0; row < B; ++row) {
      if (config_.scope == BalanceScope::kSequence) load_shares(counts + row * E, f);
      const double* prob_sum = router.prob_sum.data<double>() + row * E;
      double* d_prob = d_prob_[layer].data<double>() + row * E;
      for (int64_t e = 0; e < E; ++e) {
        const double weight = double(E) * f[e] * per_token;
        d_prob[e] = config_.loss_weight * weight;
        sums[0] += weight * prob_sum[e];
      }
      sums[1] += per_token * router.z_sum.data<double>()[row];
    }
  }
}

double BalanceLoss::z_weight(int64_t layer) const {
  return tokens_[layer] > 0 ? config_.z_loss_weight / double(tokens_[layer]) : 0;
}

BalanceReport BalanceLoss::end_step(Context& ctx) {
  world_.all_reduce(ctx, sums_, ReduceOp::kSum);
  world_.all_reduce(ctx, step_counts_, ReduceOp::kSum);
  std::memcpy(previous_counts_.raw(), step_counts_.raw(), step_counts_.bytes());

  BalanceReport report{sums_.data<double>()[0], sums_.data<double>()[1], {}};
  for (int64_t layer = 0; layer < num_layers_; ++layer) {
    const int64_t* counts = previous_counts_.data<int64_t>() + layer * num_experts_;
    int64_t total = 0, most = 0, dead = 0;
    for (int64_t e = 0; e < num_experts_; ++e) {
      total += counts[e];
      most = std::max(most, counts[e]);
      dead += counts[e] == 0;
    }
    report.loads.push_back({total > 0 ? double(most) * double(num_experts_) / double(total) : 0, dead});
  }
  return report;
}

}  // namespace braid
