#include "model/balance_loss.h"

#include <algorithm>

#include "kernels/core/copy.h"
#include "kernels/load_balance.h"

namespace braid {

BalanceLoss::BalanceLoss(const BalanceConfig& config, int64_t num_layers, int64_t num_experts, Communicator& world)
    : config_(config), num_layers_(num_layers), num_experts_(num_experts), world_(world) {}

void BalanceLoss::plan_gradients(Planner& planner, BalanceGradients& gradients, int64_t num_rows) const {
  gradients.layers.assign(static_cast<size_t>(num_layers_), {});
  for (int64_t layer = 0; layer < num_layers_; ++layer)
    planner.add("d_prob." + std::to_string(layer), gradients.layers[layer].d_prob, {num_rows, num_experts_},
                DType::kF64);
}

void BalanceLoss::plan(Planner& planner) {
  planner.add("step_counts", step_counts_, {num_layers_, num_experts_}, DType::kI64);
  planner.add("shared_counts", shared_counts_, {num_layers_, num_experts_}, DType::kI64);
  planner.add("previous_counts", previous_counts_, {num_layers_, num_experts_}, DType::kI64);
  planner.add("row_counts", row_counts_, {num_experts_}, DType::kI64);
  planner.add("sums", sums_, {2}, DType::kF64);
}

void BalanceLoss::begin_step(Context& ctx, const std::vector<int64_t>& tokens_per_layer) {
  tokens_ = tokens_per_layer;
  fill_zero(ctx, step_counts_);
  fill_zero(ctx, sums_);
}

bool BalanceLoss::counts_come_first(int64_t micro_batches) const {
  return config_.scope == BalanceScope::kGlobalBatch && config_.counts == BalanceCounts::kExact && micro_batches > 1;
}

void BalanceLoss::count(Context& ctx, const std::vector<const RouterOutputs*>& layers) {
  for (int64_t layer = 0; layer < num_layers_; ++layer)
    add_counts(ctx, step_counts_.rows(layer, layer + 1).view({num_experts_}), layers[layer]->counts);
}

Tensor BalanceLoss::load_counts(Context& ctx, int64_t layer, const RouterOutputs& router) {
  switch (config_.scope) {
    case BalanceScope::kGlobalBatch:
      return (config_.counts == BalanceCounts::kPreviousStep ? previous_counts_ : shared_counts_)
          .rows(layer, layer + 1);
    case BalanceScope::kMicroBatch:
      fill_zero(ctx, row_counts_);
      add_counts(ctx, row_counts_, router.counts);
      return row_counts_.view({1, num_experts_});
    case BalanceScope::kSequence: break;
  }
  return router.counts;
}

void BalanceLoss::prepare_backward(Context& ctx, BalanceGradients& gradients,
                                   const std::vector<const RouterOutputs*>& layers) {
  if (config_.scope == BalanceScope::kGlobalBatch && config_.counts != BalanceCounts::kPreviousStep) {
    copy(ctx, shared_counts_, step_counts_);
    world_.all_reduce(ctx, shared_counts_, ReduceOp::kSum);
  }
  for (int64_t layer = 0; layer < num_layers_; ++layer) {
    const double per_token = tokens_[layer] > 0 ? 1.0 / double(tokens_[layer]) : 0;
    load_balance(ctx, gradients.layers[layer].d_prob, sums_, load_counts(ctx, layer, *layers[layer]), *layers[layer],
                 config_.loss_weight, per_token);
    gradients.layers[layer].z_weight = tokens_[layer] > 0 ? config_.z_loss_weight / double(tokens_[layer]) : 0;
  }
}

BalanceReport BalanceLoss::end_step(Context& ctx) {
  world_.all_reduce(ctx, sums_, ReduceOp::kSum);
  world_.all_reduce(ctx, step_counts_, ReduceOp::kSum);
  copy(ctx, shared_counts_, previous_counts_);
  copy(ctx, previous_counts_, step_counts_);

  double sums[2] = {};
  std::vector<int64_t> all_counts(static_cast<size_t>(step_counts_.numel()));
  copy(ctx, Tensor::of(sums, {2}), sums_);
  copy(ctx, Tensor::of(all_counts.data(), step_counts_.shape()), step_counts_);
  BalanceReport report{sums[0], sums[1], {}};
  for (int64_t layer = 0; layer < num_layers_; ++layer) {
    const int64_t* counts = all_counts.data() + layer * num_experts_;
    int64_t total = 0, most = 0, dead = 0;
    for (int64_t e = 0; e < num_experts_; ++e) {
      total += counts[e];
      most = std::max(most, counts[e]);
      dead += counts[e] == 0;
    }
    report.loads.push_back({total > 0 ? double(most) * double(num_experts_) / double(total) : 0, dead,
                            std::vector<int64_t>(counts, counts + num_experts_)});
  }
  return report;
}

void BalanceLoss::undo_step(Context& ctx) { copy(ctx, previous_counts_, shared_counts_); }

}  // namespace braid
