#include "trainer/train_step.h"

#include <algorithm>
#include <cmath>

#include "parallel/failpoint.h"

namespace braid {
namespace {

TokenCounts sum_over_ranks(Context& ctx, const TokenCounts& local, Communicator& world) {
  int64_t values[] = {local.tokens, local.lm_targets, local.mtp_tokens, local.mtp_targets};
  world.all_reduce(ctx, Tensor::of(values, {4}), ReduceOp::kSum);
  return {values[0], values[1], values[2], values[3]};
}

double ratio(double numerator, int64_t count) { return count > 0 ? numerator / double(count) : 0; }

}  // namespace

LossScales loss_scales(const TokenCounts& counts, const MtpConfig& mtp) {
  return {ratio(1, counts.lm_targets), ratio(mtp.loss_weight, counts.mtp_targets)};
}

std::vector<int64_t> tokens_per_layer(const Model& model, const TokenCounts& counts) {
  std::vector<int64_t> tokens(model.num_moe_layers(), counts.tokens);
  if (model.has_mtp()) tokens.back() = counts.mtp_tokens;
  return tokens;
}

StepResult train_step(Context& ctx, TrainingState& state, const StepBatches& batches, const ProcessMesh& mesh,
                      const RunConfig& c, int64_t step, const SpikeRule* spikes) {
  Model& model = state.model;
  ShardedParameters& parameters = state.parameters;
  BalanceLoss& balance = state.balance;
  const TokenCounts counts = sum_over_ranks(ctx, batches.counts, mesh.world());
  const LossScales scales = loss_scales(counts, c.mtp);

  parameters.zero_gradients(ctx, Accumulate::kNo);  // the first micro-batch writes the experts'
  balance.begin_step(ctx, tokens_per_layer(model, counts));
  const bool counts_first = balance.counts_come_first(static_cast<int64_t>(batches.micro_batches.size()));
  if (counts_first) {
    for (const Batch& batch : batches.micro_batches) {
      model.forward(ctx, batch);
      balance.count(ctx, model.routers());
    }
  }

  LossSums sums;
  int64_t overflow_rounds = 0;
  model.numbers().begin_step();
  for (const Batch& batch : batches.micro_batches) {
    model.forward(ctx, batch);
    if (!counts_first) balance.count(ctx, model.routers());
    balance.prepare_backward(ctx, model.routers());
    const bool is_first = &batch == &batches.micro_batches.front(), is_last = &batch == &batches.micro_batches.back();
    const auto left = [&](int64_t layer) {
      if (is_last) parameters.reduce_complete_gradients(ctx, layer);
    };
    const LossSums micro =
        model.losses_and_backward(ctx, scales, balance, left, is_first ? Accumulate::kNo : Accumulate::kYes);
    sums.lm += micro.lm;
    sums.mtp += micro.mtp;
    overflow_rounds += model.overflow_rounds();
    model.numbers().collect(ctx);
  }

  const double lm = ctx.counts_only() ? sums.lm : with_fault("loss", sums.lm);  // the count is no step
  double all_sums[] = {lm, sums.mtp, double(overflow_rounds)};
  mesh.world().all_reduce(ctx, Tensor::of(all_sums, {3}), ReduceOp::kSum);
  StepResult result;
  result.loss_lm = ratio(all_sums[0], counts.lm_targets);
  result.loss_mtp = ratio(all_sums[1], counts.mtp_targets);
  result.overflow_rounds = static_cast<int64_t>(all_sums[2]);
  result.balance = balance.end_step(ctx);
  result.numbers = model.numbers().end_step(ctx, mesh.world(), tokens_per_layer(model, counts));
  result.tokens = counts.tokens;

  parameters.reduce_gradients(ctx);
  result.grad_norm = parameters.global_norm(ctx);
  if (c.log.wants(LogSection::kGradNorms))
    for (const NamedNumber& norm : parameters.norms_by_name(ctx))
      result.numbers.push_back({concat(LogSection::kGradNorms, '/', norm.name), norm.value});
  const double loss = result.loss_lm + result.loss_mtp + result.balance.loss + result.balance.z_loss;
  if (!std::isfinite(loss))
    result.problem = concat("step ", step, ": the loss is not finite (lm ", result.loss_lm, ", mtp ", result.loss_mtp,
                            ", balance ", result.balance.loss, ")");
  else if (!std::isfinite(result.grad_norm))
    result.problem = concat("step ", step, ": the gradient norm is ", result.grad_norm);
  else if (spikes) result.spike = spikes->judge(result.loss_lm, result.grad_norm);
  if (!result.is_applied()) return result;

  result.lr = c.optimizer.lr * lr_factor(c.schedule, step, c.run.steps);
  const double max_norm = c.optimizer.max_grad_norm;
  const double clip = max_norm > 0 ? std::min(1.0, max_norm / (result.grad_norm + 1e-6)) : 1.0;
  state.optimizer.update(ctx, {result.lr, clip, step});
  return result;
}

}  // namespace braid
