#include "trainer/spike_rule.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/messages.h"

namespace braid {
namespace {

using namespace braid::testing;

// Losses of mean 4 and norms of mean 1, with a standard deviation of 0.1 and 0.2.
void fill(SpikeRule& rule, int64_t steps) {
  for (int64_t i = 0; i < steps; ++i) rule.add(i % 2 == 0 ? 3.9 : 4.1, i % 2 == 0 ? 0.8 : 1.2);
}

TEST(SpikeRule, NothingStandsOutBeforeTheWindowIsFull) {
  SpikeRule rule;
  EXPECT_EQ(rule.judge(1e9, 1e9), "");
  fill(rule, SpikeRule::kWindow - 1);
  EXPECT_EQ(rule.judge(1e9, 1e9), "");
  fill(rule, 1);
  EXPECT_NE(rule.judge(1e9, 1), "");
}

TEST(SpikeRule, SixStandardDeviationsAboveTheMean) {
  SpikeRule rule;
  fill(rule, SpikeRule::kWindow);
  EXPECT_EQ(rule.judge(4.59, 2.19), "");
  expect_contains(rule.judge(4.61, 1),
                  "the loss 4.61 is more than 6 standard deviations (0.1) above the mean 4 of the last 128 steps");
  expect_contains(rule.judge(4, 2.21),
                  "the gradient norm 2.21 is more than 6 standard deviations (0.2) above the mean 1 of");
  EXPECT_EQ(rule.judge(-1e9, 0), "") << "what is small is no spike";
}

TEST(SpikeRule, OldStepsAreForgotten) {
  SpikeRule rule;
  fill(rule, SpikeRule::kWindow);
  for (int64_t i = 0; i < SpikeRule::kWindow; ++i) rule.add(i % 2 == 0 ? 10 : 12, i % 2 == 0 ? 5 : 7);
  EXPECT_EQ(rule.judge(16.9, 11.9), "");
  EXPECT_NE(rule.judge(17.1, 6), "");
  EXPECT_NE(rule.judge(11, 12.1), "");
}

TEST(SpikeRule, AnyRiseStandsOutFromWhatNeverChanges) {
  SpikeRule rule;
  for (int64_t i = 0; i < SpikeRule::kWindow; ++i) rule.add(2, 3);
  EXPECT_EQ(rule.judge(2, 3), "");
  EXPECT_NE(rule.judge(2.5, 3), "");
}

}  // namespace
}  // namespace braid
