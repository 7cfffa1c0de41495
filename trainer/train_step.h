#pragma once

#include "data/batch_stream.h"
#include "trainer/spike_rule.h"
#include "trainer/training_state.h"

namespace braid {

// Means over the targets of the global batch; balance: see BalanceReport.
struct StepResult {
  double loss_lm = 0, loss_mtp = 0;
  std::vector<double> loss_of_sources;  // loss_lm over the targets of each of data.sources; NaN where there are none
  BalanceReport balance;
  std::vector<NamedNumber> numbers;  // those that log.metrics asks for
  double grad_norm = 0, lr = 0;
  int64_t tokens = 0;           // valid tokens of the global batch
  int64_t overflow_rounds = 0;  // see Model::overflow_rounds; of all ranks and micro-batches
  std::string problem;          // why no update was applied: something is not finite,
  std::string spike;            // or stands out from the steps before; both empty if one was
  bool is_applied() const { return problem.empty() && spike.empty(); }
};

// Of the counts of a global batch: what the sums over its targets are multiplied by, and the tokens that each MoE layer
// routes.
LossScales loss_scales(const TokenCounts& counts, const MtpConfig& mtp);
std::vector<int64_t> tokens_per_layer(const Model& model, const TokenCounts& counts);

// One optimizer update, number `step` (1 = first), on the micro-batches of this rank. Every loss is a mean over the
// valid tokens of the global batch, known before the first backward; gradients are summed and never divided, so the
// result does not depend on ranks, micro-batches or masks. If a loss or the gradient norm is not finite, no weight has
// changed and the result says so, on every rank; nor if they stand out by `spikes`, where it is given.
StepResult train_step(Context& ctx, TrainingState& state, const StepBatches& batches, const ProcessMesh& mesh,
                      const RunConfig& c, int64_t step, const SpikeRule* spikes = nullptr);

}  // namespace braid
