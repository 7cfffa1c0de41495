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

// A micro-batch that is computed beside others: where it is enqueued and what is its own.
struct InFlight {
  Context& ctx;
  TrainingState::Lane& lane;
  const Batch& batch;
  bool is_first, is_last;  // of the step
};
using SideBySide = std::vector<InFlight>;

// The micro-batches of a step in their order, as many side by side as there are lanes; while operators are timed, one.
std::vector<SideBySide> in_flight(Context& ctx, TrainingState& state, const std::vector<Batch>& micro_batches) {
  const size_t num_lanes = ctx.profile() ? 1 : state.lanes.size();
  std::vector<SideBySide> groups;
  for (size_t i = 0; i < micro_batches.size(); ++i) {
    const size_t lane = i % num_lanes;
    if (lane == 0) groups.emplace_back();
    groups.back().push_back(
        {lane == 0 ? ctx : ctx.second(), *state.lanes[lane], micro_batches[i], i == 0, i + 1 == micro_batches.size()});
  }
  return groups;
}

// One whose rows an exchange had to cut is computed again, with rounds for all of them.
void forward(Context& ctx, SideBySide& group) {
  std::vector<InFlight*> left;
  for (InFlight& one : group) {
    one.ctx.wait_for(ctx);
    left.push_back(&one);
  }
  while (!left.empty()) {
    std::vector<StepsOn> passes;
    for (InFlight* one : left) passes.push_back({&one->ctx, one->lane.model.forward_steps(one->ctx, one->batch)});
    run_side_by_side(passes);
    std::erase_if(left, [](InFlight* one) { return !one->lane.model.must_repeat(one->ctx); });
  }
}

void count_experts(Context& ctx, BalanceLoss& balance, const InFlight& one) {
  ctx.wait_for(one.ctx);
  balance.count(ctx, one.lane.model.routers());
}

// Gradients are added in the order of micro-batches, as each waits for the one before it. Those of the experts are
// overwritten by the first; behind the last, what is complete is summed over the ranks beside the rest of backward.
void backward(Context& ctx, SideBySide& group, ShardedParameters& parameters, const LossScales& scales) {
  std::vector<StepsOn> passes;
  for (InFlight& one : group) {
    one.ctx.wait_for(ctx);
    std::function<void(int64_t)> left;
    if (one.is_last) left = [&](int64_t layer) { parameters.reduce_complete_gradients(ctx, one.ctx, layer); };
    const Accumulate of_experts = one.is_first ? Accumulate::kNo : Accumulate::kYes;
    passes.push_back({&one.ctx, one.lane.model.backward_steps(one.ctx, scales, one.lane.balance, left, of_experts)});
  }
  run_side_by_side(passes);
}

// Of the micro-batches so far.
struct StepSums {
  double lm = 0, mtp = 0;
  int64_t overflow_rounds = 0;
  std::vector<double> lm_of_sources, targets_of_sources;  // of each of data.sources
};

void add_sums(Context& ctx, StepSums& sums, LayerNumbers& numbers, const SideBySide& group) {
  for (const InFlight& one : group) {
    Model& model = one.lane.model;
    ctx.wait_for(one.ctx);
    const LossSums losses = model.read_losses(ctx);
    sums.lm += losses.lm;
    sums.mtp += losses.mtp;
    for (size_t row = 0; row < losses.lm_of_rows.size(); ++row)
      sums.lm_of_sources[one.batch.sources[row]] += losses.lm_of_rows[row];
    sums.overflow_rounds += model.overflow_rounds();
    numbers.collect(ctx, model.numbers());
  }
}

StepSums sum_over_ranks(Context& ctx, StepSums sums, Communicator& world) {
  if (!ctx.counts_only()) sums.lm = with_fault("loss", sums.lm);  // the count is no step
  const auto num_sources = static_cast<ptrdiff_t>(sums.lm_of_sources.size());
  std::vector<double> values = {sums.lm, sums.mtp, double(sums.overflow_rounds)};
  values.insert(values.end(), sums.lm_of_sources.begin(), sums.lm_of_sources.end());
  values.insert(values.end(), sums.targets_of_sources.begin(), sums.targets_of_sources.end());
  world.all_reduce(ctx, Tensor::of(values.data(), {std::ssize(values)}), ReduceOp::kSum);
  const auto of_sources = values.begin() + 3, targets = of_sources + num_sources;
  return {values[0], values[1], static_cast<int64_t>(values[2]), {of_sources, targets}, {targets, values.end()}};
}

// Says in the result why no update may be applied, if so.
void judge(StepResult& result, int64_t step, const SpikeRule* spikes) {
  const double loss = result.loss_lm + result.loss_mtp + result.balance.loss + result.balance.z_loss;
  if (!std::isfinite(loss))
    result.problem = concat("step ", step, ": the loss is not finite (lm ", result.loss_lm, ", mtp ", result.loss_mtp,
                            ", balance ", result.balance.loss, ")");
  else if (!std::isfinite(result.grad_norm))
    result.problem = concat("step ", step, ": the gradient norm is ", result.grad_norm);
  else if (spikes) result.spike = spikes->judge(result.loss_lm, result.grad_norm);
}

// What brings gradients of that norm to the largest that is allowed; 0: any is.
double clip_factor(double grad_norm, double max_norm) {
  return max_norm > 0 ? std::min(1.0, max_norm / (grad_norm + 1e-6)) : 1.0;
}

}  // namespace

StepResult train_step(Context& ctx, TrainingState& state, const StepBatches& batches, const ProcessMesh& mesh,
                      const RunConfig& c, int64_t step, const SpikeRule* spikes) {
  ShardedParameters& parameters = state.parameters;
  BalanceLoss& balance = state.balance;
  LayerNumbers& numbers = state.model.numbers();
  const TokenCounts counts = sum_over_ranks(ctx, batches.counts, mesh.world());
  const LossScales scales = loss_scales(counts, c.mtp);
  const std::vector<int64_t> routed = tokens_per_layer(state.model, counts);

  balance.begin_step(ctx, routed);
  for (auto& lane : state.lanes) lane->model.numbers().begin_step();

  std::vector<SideBySide> groups = in_flight(ctx, state, batches.micro_batches);
  const bool counts_first = balance.counts_come_first(std::ssize(batches.micro_batches));
  if (counts_first)
    for (SideBySide& group : groups) {
      forward(ctx, group);
      for (InFlight& one : group) count_experts(ctx, balance, one);
    }
  StepSums sums;
  sums.lm_of_sources.resize(std::max<size_t>(1, c.data.sources.size()));
  sums.targets_of_sources.assign(batches.targets_of_sources.begin(), batches.targets_of_sources.end());
  sums.targets_of_sources.resize(sums.lm_of_sources.size());
  for (SideBySide& group : groups) {
    forward(ctx, group);
    for (InFlight& one : group) {
      if (counts_first) ctx.wait_for(one.ctx);
      else count_experts(ctx, balance, one);
      balance.prepare_backward(ctx, one.lane.balance, one.lane.model.routers());
    }
    if (group.front().is_first) {  // the last update has read them by now
      state.optimizer.wait_for_update(ctx);
      parameters.zero_gradients(ctx, Accumulate::kNo);  // the first micro-batch writes the experts'
    }
    backward(ctx, group, parameters, scales);
    add_sums(ctx, sums, numbers, group);
  }
  sums = sum_over_ranks(ctx, sums, mesh.world());

  StepResult result;
  result.loss_lm = ratio(sums.lm, counts.lm_targets);
  result.loss_mtp = ratio(sums.mtp, counts.mtp_targets);
  for (size_t i = 0; i < sums.lm_of_sources.size(); ++i)
    result.loss_of_sources.push_back(sums.targets_of_sources[i] > 0 ? sums.lm_of_sources[i] / sums.targets_of_sources[i]
                                                                    : std::nan(""));
  result.overflow_rounds = sums.overflow_rounds;
  result.balance = balance.end_step(ctx);
  result.numbers = numbers.end_step(ctx, mesh.world(), routed);
  result.tokens = counts.tokens;

  parameters.reduce_gradients(ctx);
  result.grad_norm = parameters.global_norm(ctx);
  if (c.log.wants(LogSection::kGradNorms))
    for (const NamedNumber& norm : parameters.norms_by_name(ctx))
      result.numbers.push_back({concat(LogSection::kGradNorms, '/', norm.name), norm.value});
  judge(result, step, spikes);
  if (!result.is_applied()) return result;

  result.lr = c.optimizer.lr * lr_factor(c.schedule, step, c.run.steps);
  state.optimizer.update(ctx, {result.lr, clip_factor(result.grad_norm, c.optimizer.max_grad_norm), step});
  return result;
}

}  // namespace braid
