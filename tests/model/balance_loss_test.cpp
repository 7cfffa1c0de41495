#include "model/balance_loss.h"

#include "tests/testing.h"

namespace braid {
namespace {

using namespace braid::testing;

constexpr int64_t kExperts = 6, kChosen = 2;

struct Routed {
  RouterOutputs out;
  Segments segments;
};

Routed route(const Tensor& logits, int64_t num_rows) {
  Context ctx = Context::cpu();
  const int64_t N = logits.dim(0);
  Routed r{{zeros({N, kChosen}, DType::kI32), zeros_f64({N, kChosen}), zeros_f64({N, kExperts}), zeros_f64({N}),
            zeros({num_rows, kExperts}, DType::kI64), zeros_f64({num_rows, kExperts}), zeros_f64({num_rows})},
           Segments::whole_rows(num_rows, N / num_rows)};
  router_forward(ctx, r.out, logits, r.segments, GateNorm::kTopK);
  return r;
}

struct Balance {
  std::unique_ptr<Communicator> world = make_local_communicator();
  BalanceLoss loss;
  BalanceGradients gradients;
  Arena memory;
  Balance(BalanceScope scope, BalanceCounts counts, int64_t num_rows)
      : loss({scope, counts, 0.5, 0}, 1, kExperts, *world) {
    Planner plan;
    loss.plan(plan);
    loss.plan_gradients(plan, gradients, num_rows);
    memory = Arena("balance", plan);
  }
};

// Runs a step over the logits cut into micro-batches; returns the gradients of all logits and the loss.
struct StepOutcome {
  Tensor d_logits;
  double loss;
};
StepOutcome run_step(Balance& b, const Tensor& logits, int64_t num_rows, int64_t micro_batches) {
  Context ctx = Context::cpu();
  const int64_t N = logits.dim(0), n = N / micro_batches, rows = num_rows / micro_batches;
  b.loss.begin_step(ctx, {N});
  std::vector<Routed> micro;
  for (int64_t i = 0; i < micro_batches; ++i) micro.push_back(route(logits.rows(i * n, (i + 1) * n), rows));
  const bool first = b.loss.counts_come_first(micro_batches);
  if (first)
    for (auto& m : micro) b.loss.count(ctx, {&m.out});
  Tensor d_logits = zeros_f64(logits.shape());
  for (int64_t i = 0; i < micro_batches; ++i) {
    if (!first) b.loss.count(ctx, {&micro[i].out});
    b.loss.prepare_backward(ctx, b.gradients, {&micro[i].out});
    router_backward(ctx, d_logits.rows(i * n, (i + 1) * n), zeros_f64({n, kChosen}), b.gradients.layers[0].d_prob, 0,
                    micro[i].out, micro[i].segments, GateNorm::kTopK);
  }
  return {d_logits, b.loss.end_step(ctx).loss};
}

TEST(BalanceLoss, UniformCountsGiveZeroGradient) {
  // Before the first step the previous counts are empty: the load is taken as uniform.
  Balance b(BalanceScope::kGlobalBatch, BalanceCounts::kPreviousStep, 4);
  const StepOutcome step = run_step(b, random_f64({32, kExperts}, 1), 4, 1);
  for (int64_t i = 0; i < step.d_logits.numel(); ++i) EXPECT_NEAR(step.d_logits.data<double>()[i], 0, 1e-17);
  EXPECT_NEAR(step.loss, 1, 1e-14) << "balanced routing gives 1 per layer";
}

TEST(BalanceLoss, ExactCountsOfFourMicroBatchesEqualOneBatchBitForBit) {
  const Tensor logits = random_f64({64, kExperts}, 2);
  Balance one(BalanceScope::kGlobalBatch, BalanceCounts::kExact, 8),
      four(BalanceScope::kGlobalBatch, BalanceCounts::kExact, 2);
  const StepOutcome whole = run_step(one, logits, 8, 1), parts = run_step(four, logits, 8, 4);
  expect_same_bits(parts.d_logits, whole.d_logits);
  EXPECT_EQ(parts.loss, whole.loss);
  EXPECT_GT(dot(whole.d_logits, whole.d_logits), 0);
}

TEST(BalanceLoss, ExactLossIsTheDefinition) {
  const Tensor logits = random_f64({16, kExperts}, 3);
  Balance b(BalanceScope::kGlobalBatch, BalanceCounts::kExact, 2);
  const StepOutcome step = run_step(b, logits, 2, 1);
  const Routed r = route(logits, 2);
  double expected = 0;
  for (int64_t e = 0; e < kExperts; ++e) {
    double f = 0, P = 0;
    for (int64_t row = 0; row < 2; ++row)
      f += double(r.out.counts.data<int64_t>()[row * kExperts + e]) / (16 * kChosen);
    for (int64_t n = 0; n < 16; ++n) P += r.out.prob.data<double>()[n * kExperts + e] / 16;
    expected += double(kExperts) * f * P;
  }
  EXPECT_NEAR(step.loss, expected, 1e-14);
}

// The previous step's counts do not depend on how a step is cut, running counts do: Megatron's behaviour, on request.
TEST(BalanceLoss, OnlyRunningCountsDependOnTheMicroBatches) {
  const Tensor logits = random_f64({64, kExperts}, 4);
  for (BalanceCounts counts : {BalanceCounts::kPreviousStep, BalanceCounts::kRunning}) {
    Balance one(BalanceScope::kGlobalBatch, counts, 8), four(BalanceScope::kGlobalBatch, counts, 2);
    run_step(one, logits, 8, 1), run_step(four, logits, 8, 4);
    const StepOutcome whole = run_step(one, logits, 8, 1), parts = run_step(four, logits, 8, 4);
    if (counts == BalanceCounts::kPreviousStep) expect_same_bits(parts.d_logits, whole.d_logits);
    else EXPECT_GT(relative_rms(parts.d_logits, whole.d_logits), 1e-3);
  }
}

TEST(BalanceLoss, AStepThatIsUndoneLeavesNothingBehind) {
  Context ctx = Context::cpu();
  Balance undone(BalanceScope::kGlobalBatch, BalanceCounts::kPreviousStep, 2),
      never(BalanceScope::kGlobalBatch, BalanceCounts::kPreviousStep, 2);
  for (Balance* b : {&undone, &never}) run_step(*b, random_f64({16, kExperts}, 5), 2, 1);
  run_step(undone, random_f64({16, kExperts}, 6), 2, 1);
  undone.loss.undo_step(ctx);
  expect_same_bits(undone.loss.previous_counts(), never.loss.previous_counts());
  const Tensor next = random_f64({16, kExperts}, 7);
  expect_same_bits(run_step(undone, next, 2, 1).d_logits, run_step(never, next, 2, 1).d_logits);
}

TEST(BalanceLoss, ScopesAgreeWhenThereIsOneSequence) {
  const Tensor logits = random_f64({16, kExperts}, 5);
  Balance exact(BalanceScope::kGlobalBatch, BalanceCounts::kExact, 1);
  Balance micro(BalanceScope::kMicroBatch, BalanceCounts::kExact, 1);
  Balance sequence(BalanceScope::kSequence, BalanceCounts::kExact, 1);
  const Tensor expected = run_step(exact, logits, 1, 1).d_logits;
  expect_same_bits(run_step(micro, logits, 1, 1).d_logits, expected);
  expect_same_bits(run_step(sequence, logits, 1, 1).d_logits, expected);
}

TEST(BalanceLoss, SequenceScopeCountsEachSequenceOnItsOwn) {
  const Tensor logits = random_f64({32, kExperts}, 6);
  Balance both(BalanceScope::kSequence, BalanceCounts::kExact, 2),
      single(BalanceScope::kSequence, BalanceCounts::kExact, 1);
  const Tensor together = run_step(both, logits, 2, 1).d_logits;
  const Tensor alone = run_step(single, logits.rows(0, 16), 1, 1).d_logits;  // divided by 16 tokens instead of 32
  for (int64_t i = 0; i < alone.numel(); ++i)
    EXPECT_NEAR(together.data<double>()[i], alone.data<double>()[i] / 2, 1e-16);
}

TEST(BalanceLoss, ReportsLoadAndDeadExperts) {
  Balance b(BalanceScope::kGlobalBatch, BalanceCounts::kExact, 1);
  Tensor logits = zeros_f64({4, kExperts});
  for (int64_t n = 0; n < 4; ++n) logits.data<double>()[n * kExperts] = logits.data<double>()[n * kExperts + 1] = 5;
  Context ctx = Context::cpu();
  b.loss.begin_step(ctx, {4});
  const Routed r = route(logits, 1);
  b.loss.count(ctx, {&r.out});
  b.loss.prepare_backward(ctx, b.gradients, {&r.out});
  const BalanceReport report = b.loss.end_step(ctx);
  ASSERT_EQ(report.loads.size(), 1u);
  EXPECT_EQ(report.loads[0].max_over_mean, 3);
  EXPECT_EQ(report.loads[0].dead, 4);
  std::vector<int64_t> counts(kExperts, 0);
  counts[0] = counts[1] = 4;
  EXPECT_EQ(report.loads[0].counts, counts);
}

}  // namespace
}  // namespace braid
