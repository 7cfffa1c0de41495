#pragma once

#include <cstdint>
#include <vector>

#include "kernels/core/arena.h"
#include "kernels/router.h"
#include "model/config.h"
#include "model/layer_pass.h"
#include "parallel/communicator.h"

namespace braid {

// How the tokens of a step spread over the experts of one layer.
struct ExpertLoad {
  double max_over_mean = 0;
  int64_t dead = 0;             // experts without a token
  std::vector<int64_t> counts;  // (E) tokens of each expert
};
struct BalanceReport {
  double loss = 0;    // sum over layers of  E sum_i f_i P_i  (before loss_weight); balanced routing gives 1 per layer
  double z_loss = 0;  // sum over layers of the mean of logsumexp^2 (before z_loss_weight)
  std::vector<ExpertLoad> loads;  // per layer
};

// What the balance and z losses add to the gradients of the routers in the backward of one micro-batch, by layer.
struct BalanceGradients {
  std::vector<BalanceGradient> layers;
};

// Load-balancing loss of every MoE layer over a step (the MTP block's layer is the last):
//   L = alpha E sum_i f_i P_i,   f_i = share of the (token, slot) pairs that went to expert i,  P_i = mean of prob_i
// P runs over the global batch; f is counted over the scope of the config and has no gradient, so every valid token
// gets
//   dL / dprob_i = alpha E f_i / T,   T = valid tokens of the global batch.
// Scopes micro_batch and sequence weigh each micro-batch or sequence by its share of the tokens.
// Source: arXiv 2501.11873.
class BalanceLoss {
 public:
  BalanceLoss(const BalanceConfig& config, int64_t num_layers, int64_t num_experts, Communicator& world);
  void plan(Planner& planner);
  // For micro-batches of num_rows sequences, one at a time.
  void plan_gradients(Planner& planner, BalanceGradients& gradients, int64_t num_rows) const;

  // tokens_per_layer: valid tokens of the global batch that reach each layer's router.
  void begin_step(Context& ctx, const std::vector<int64_t>& tokens_per_layer);
  // Must every micro-batch of the step be counted before the first backward?
  bool counts_come_first(int64_t micro_batches) const;
  // Adds the counts of one micro-batch; once per micro-batch and step.
  void count(Context& ctx, const std::vector<const RouterOutputs*>& layers);
  // Fills the gradients for the backward of this micro-batch and adds to the step's loss. Every rank calls it.
  void prepare_backward(Context& ctx, BalanceGradients& gradients, const std::vector<const RouterOutputs*>& layers);
  // Sums over ranks; the counts become those of the previous step.
  BalanceReport end_step(Context& ctx);
  // For a step that is not applied: the counts of the previous step are again what they were before end_step.
  void undo_step(Context& ctx);

  // (layers, E) I64, of the last finished step: the state a checkpoint needs. All 0 before the first step.
  Tensor& previous_counts() { return previous_counts_; }

 private:
  // (loads, E) of one layer, by which the load f of a micro-batch is judged.
  Tensor load_counts(Context& ctx, int64_t layer, const RouterOutputs& router);

  BalanceConfig config_;
  int64_t num_layers_, num_experts_;
  Communicator& world_;
  // (layers, E): this rank, all ranks, all ranks a step ago; between steps shared_counts_ holds those of one more ago.
  Tensor step_counts_, shared_counts_, previous_counts_;
  Tensor row_counts_;  // (E): this micro-batch
  Tensor sums_;        // (2) F64: loss, z-loss of this rank
  std::vector<int64_t> tokens_;
};

}  // namespace braid
