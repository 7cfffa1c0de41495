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

namespace {

// Micro-batches side by side: each with what is its own.
struct InFlight {
  Context& ctx;
  TrainingState::Lane& lane;
  const Batch& batch;
};

void forward(std::span<InFlight> in_flight) {
  std::vector<InFlight*> left;
  for (InFlight& one : in_flight) left.push_back(&one);
  while (!left.empty()) {
    std::vector<StepsOn> passes;
    for (InFlight* one : left) passes.push_back({&one->ctx, one->lane.model.forward_steps(one->ctx, one->batch)});
    run_side_by_side(passes);
    std::erase_if(left, [](InFlight* one) { return !one->lane.model.must_repeat(one->ctx); });
  }
}

}  // namespace

StepResult train_step(Context& ctx, TrainingState& state, const StepBatches& batches, const ProcessMesh& mesh,
                      const RunConfig& c, int64_t step, const SpikeRule* spikes) {
  Model& model = state.model;
  ShardedParameters& parameters = state.parameters;
  BalanceLoss& balance = state.balance;
  const TokenCounts counts = sum_over_ranks(ctx, batches.counts, mesh.world());
  const LossScales scales = loss_scales(counts, c.mtp);

  parameters.zero_gradients(ctx, Accumulate::kNo);  // the first micro-batch writes the experts'
  balance.begin_step(ctx, tokens_per_layer(model, counts));
  // Micro-batches that are computed side by side. While operators are timed, one by one.
  const auto num_micro_batches = static_cast<int64_t>(batches.micro_batches.size());
  const auto most = ctx.profile() ? 1 : std::ssize(state.lanes);
  auto in_flight_from = [&](int64_t first) {
    std::vector<InFlight> in_flight;
    for (int64_t i = 0; i < std::min(most, num_micro_batches - first); ++i) {
      in_flight.push_back({i == 0 ? ctx : ctx.second(), *state.lanes[i], batches.micro_batches[first + i]});
      in_flight.back().ctx.wait_for(ctx);
    }
    return in_flight;
  };

  const bool counts_first = balance.counts_come_first(num_micro_batches);
  auto count = [&](InFlight& one) {
    ctx.wait_for(one.ctx);
    balance.count(ctx, one.lane.model.routers());
  };
  for (int64_t first = 0; counts_first && first < num_micro_batches; first += most) {
    std::vector<InFlight> in_flight = in_flight_from(first);
    forward(in_flight);
    std::ranges::for_each(in_flight, count);
  }

  LossSums sums;
  int64_t overflow_rounds = 0;
  LayerNumbers& numbers = model.numbers();
  for (auto& lane : state.lanes) lane->model.numbers().begin_step();
  for (int64_t first = 0; first < num_micro_batches; first += most) {
    std::vector<InFlight> in_flight = in_flight_from(first);
    forward(in_flight);
    for (InFlight& one : in_flight) {
      if (counts_first) ctx.wait_for(one.ctx);
      else count(one);
      balance.prepare_backward(ctx, one.lane.balance, one.lane.model.routers());
    }
    // Their gradients are added in their order, for each waits for the one before it.
    std::vector<StepsOn> passes;
    for (InFlight& one : in_flight) {
      one.ctx.wait_for(ctx);
      const bool is_first = &one.batch == &batches.micro_batches.front();
      std::function<void(int64_t)> left;
      if (&one.batch == &batches.micro_batches.back())
        left = [&](int64_t layer) { parameters.reduce_complete_gradients(ctx, one.ctx, layer); };
      passes.push_back({&one.ctx, one.lane.model.backward_steps(one.ctx, scales, one.lane.balance, left,
                                                                is_first ? Accumulate::kNo : Accumulate::kYes)});
    }
    run_side_by_side(passes);
    for (InFlight& one : in_flight) {
      ctx.wait_for(one.ctx);
      const LossSums micro = one.lane.model.read_losses(ctx);
      sums.lm += micro.lm;
      sums.mtp += micro.mtp;
      overflow_rounds += one.lane.model.overflow_rounds();
      numbers.collect(ctx, one.lane.model.numbers());
    }
  }

  const double lm = ctx.counts_only() ? sums.lm : with_fault("loss", sums.lm);  // the count is no step
  double all_sums[] = {lm, sums.mtp, double(overflow_rounds)};
  mesh.world().all_reduce(ctx, Tensor::of(all_sums, {3}), ReduceOp::kSum);
  StepResult result;
  result.loss_lm = ratio(all_sums[0], counts.lm_targets);
  result.loss_mtp = ratio(all_sums[1], counts.mtp_targets);
  result.overflow_rounds = static_cast<int64_t>(all_sums[2]);
  result.balance = balance.end_step(ctx);
  result.numbers = numbers.end_step(ctx, mesh.world(), tokens_per_layer(model, counts));
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
