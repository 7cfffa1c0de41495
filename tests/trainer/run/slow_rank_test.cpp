#include "trainer/run/slow_rank.h"

#include <gtest/gtest.h>

#include "tests/messages.h"

namespace braid {
namespace {

using namespace braid::testing;

// The last of kSteps such steps.
std::string after_steps(SlowRankRule& rule, const std::vector<double>& ms, double step_ms) {
  for (int64_t i = 1; i < SlowRankRule::kSteps; ++i) EXPECT_EQ(rule.add(ms, step_ms), "");
  return rule.add(ms, step_ms);
}

TEST(OwnTimes, TheSlowestAndTheMedian) {
  const OwnTimes of_four = own_times({10, 12, 40, 11});
  EXPECT_EQ(of_four.slowest, 2);
  EXPECT_EQ(of_four.most_ms, 40);
  EXPECT_EQ(of_four.median_ms, 11);
  EXPECT_EQ(own_times({30, 10}).median_ms, 10) << "of two ranks one is slow";
}

TEST(SlowRankRule, NamesTheRankOnceUntilItRecovers) {
  SlowRankRule rule;
  const std::vector<double> well = {10, 11, 12}, third = {10, 11, 22}, first = {25, 11, 12};
  EXPECT_EQ(after_steps(rule, well, 30), "");
  EXPECT_EQ(after_steps(rule, third, 30), "") << "for a moment";
  EXPECT_EQ(after_steps(rule, well, 30), "");
  EXPECT_EQ(after_steps(rule, third, 30), "");
  expect_contains(after_steps(rule, third, 30),
                  "rank 2 takes 22 ms of its own a step, the median of all ranks is 11 ms");
  EXPECT_EQ(after_steps(rule, third, 30), "");
  EXPECT_EQ(after_steps(rule, first, 30), "");
  expect_contains(after_steps(rule, first, 30), "rank 0 takes 25 ms");
  EXPECT_EQ(after_steps(rule, well, 30), "");
  EXPECT_EQ(after_steps(rule, first, 30), "");
  expect_contains(after_steps(rule, first, 30), "rank 0 takes 25 ms");
}

TEST(SlowRankRule, OneSlowStepOrLittleOfAStepIsNothing) {
  SlowRankRule rule;
  for (int i = 0; i < 3; ++i) EXPECT_EQ(after_steps(rule, {1, 1, 2}, 30), "") << "less than a tenth of a step";
  for (int64_t i = 1; i < SlowRankRule::kSteps; ++i) rule.add({10, 10, 10}, 30);
  EXPECT_EQ(rule.add({10, 10, 90}, 100), "");
  EXPECT_EQ(after_steps(rule, {10, 10, 10}, 30), "");
}

}  // namespace
}  // namespace braid
