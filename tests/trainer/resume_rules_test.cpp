#include "trainer/resume_rules.h"

#include <gtest/gtest.h>

#include "tests/messages.h"
#include "trainer/config/config_reader.h"

namespace braid {
namespace {

using namespace braid::testing;

RunConfig stored_config() {
  RunConfig c;
  c.run.steps = 100;
  c.train.micro_batch_size = 2;
  c.schedule.kind = ScheduleKind::kCosine;
  c.balance.loss_weight = 0.01;
  return c;
}

// What a resume with these keys changed is told; empty: it goes on.
std::string refusal(const std::vector<std::string>& changes, const ResumeRules& rules = {},
                    const RunConfig& stored = stored_config()) {
  RunConfig config = stored;
  apply_overrides(config, changes);
  return message_of<CheckpointError>([&] { check_resume_config(stored, config, "ckpt", rules); });
}

TEST(ResumeRules, LayoutPathsSavingAndLoggingAreFree) {
  for (const char* change :
       {"run.dir=other", "run.steps=7", "run.time_limit=5", "device=cpu", "allow_slow=[attention]", "parallel.expert=2",
        "memory.recompute=layer", "train.micro_batch_size=1", "eval.interval_steps=3", "log.interval_steps=2",
        "checkpoint.keep=1", "data.prefetch_steps=1", "init.from=elsewhere"})
    EXPECT_EQ(refusal({change}), "") << change;
}

TEST(ResumeRules, WhatChangesTheResultIsRefused) {
  EXPECT_EQ(refusal({"train.seed=5"}), "ckpt: made with another config: train.seed was 1234 and is 5");
  for (const char* change : {"precision=fp64", "train.seq_length=8", "model.hidden_size=32", "mtp.depth=0",
                             "optimizer.beta2=0.5", "optimizer.kind=muon", "init.equal_norm_router_rows=false"})
    EXPECT_NE(refusal({change}), "") << change;
  EXPECT_EQ(refusal({"train.seed=5", "train.seq_length=8", "mtp.depth=0", "model.hidden_size=32"}),
            "ckpt: made with another config: train.seq_length was 0 and is 8, train.seed was 1234 and is 5, "
            "model.hidden_size was 2048 and is 32, …");
}

TEST(ResumeRules, WhatMayDifferOnPurposeIsSaidAndTakenIfNamed) {
  for (const std::string key :
       {"optimizer.lr", "schedule.warmup_steps", "train.global_batch_size", "balance.loss_weight"}) {
    expect_contains(refusal({key + "=3"}), "(on purpose: --override " + key + ")");
    EXPECT_EQ(refusal({key + "=3"}, {.overrides = {key}}), "") << key;
  }
  EXPECT_EQ(message_of<ConfigError>([] { refusal({}, {.overrides = {"train.seed"}}); }),
            "--override train.seed: only optimizer.lr, schedule.*, train.global_batch_size, train.micro_batch_size and "
            "balance.* may differ on purpose");
}

TEST(ResumeRules, TheLayoutStaysWhereTheBalanceLossCountsByIt) {
  RunConfig by_micro_batch = stored_config(), running = stored_config();
  by_micro_batch.balance.scope = BalanceScope::kMicroBatch;
  running.balance.counts = BalanceCounts::kRunning;
  const std::string smaller = "train.micro_batch_size=1";
  EXPECT_EQ(refusal({smaller}, {}, by_micro_batch),
            "ckpt: made with another config: train.micro_batch_size was 2 and is 1, which the balance loss counts by "
            "(balance.scope micro_batch, balance.counts previous_step)");
  EXPECT_NE(refusal({smaller}, {}, running), "");
  EXPECT_EQ(refusal({smaller}, {.overrides = {"train.micro_batch_size"}}, running), "");

  const ResumeRules more_ranks = {.stored_ranks = 2, .num_ranks = 4};
  EXPECT_EQ(refusal({}, more_ranks), "");
  EXPECT_EQ(refusal({}, more_ranks, by_micro_batch), "");
  expect_contains(refusal({}, more_ranks, running), "the number of ranks was 2 and is 4");
  running.balance.loss_weight = 0;
  EXPECT_EQ(refusal({smaller}, more_ranks, running), "");
}

TEST(ResumeRules, AnotherNumberOfStepsIsToldWithItsLearningRates) {
  RunConfig stored = stored_config();
  stored.optimizer.lr = 1;
  stored.schedule.warmup_steps = 0;
  RunConfig longer = stored;
  longer.run.steps = 200;
  const std::string note = note_of_schedule(stored, longer, 50);
  expect_contains(note, "note: run.steps 100 -> 200: the learning rate was ");
  expect_contains(note, "; it rises, as the schedule ends with the run");
  EXPECT_EQ(note_of_schedule(longer, stored, 50).find("rises"), std::string::npos);
  EXPECT_EQ(note_of_schedule(stored, longer, 200), "");

  stored.schedule.kind = longer.schedule.kind = ScheduleKind::kConstant;
  EXPECT_EQ(note_of_schedule(stored, longer, 50),
            "note: run.steps 100 -> 200: the learning rate of step 51 stays 1.000e+00 and ends at 1.000e+00");
}

}  // namespace
}  // namespace braid
