#include "trainer/optimizer/schedule.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

namespace braid {
namespace {

ScheduleConfig schedule(ScheduleKind kind, int64_t warmup_steps, int64_t decay_steps, double min_lr_ratio = 0.1) {
  return {kind, warmup_steps, decay_steps, min_lr_ratio};
}

TEST(Schedule, WarmsUpLinearlyAndReachesThePeakAtTheLastWarmUpStep) {
  for (ScheduleKind kind :
       {ScheduleKind::kConstant, ScheduleKind::kLinear, ScheduleKind::kCosine, ScheduleKind::kWsd}) {
    const ScheduleConfig s = schedule(kind, 4, 0);
    EXPECT_EQ(lr_factor(s, 1, 100), 0.25);
    EXPECT_EQ(lr_factor(s, 2, 100), 0.5);
    EXPECT_EQ(lr_factor(s, 4, 100), 1.0);
    EXPECT_EQ(lr_factor(schedule(kind, 1, 0), 1, 100), 1.0);
    EXPECT_EQ(lr_factor(schedule(kind, 100, 0), 50, 100), 0.5);
    EXPECT_EQ(lr_factor(schedule(kind, 100, 0), 100, 100), 1.0);
  }
}

TEST(Schedule, ConstantStaysAtThePeak) {
  for (int64_t step : {1, 50, 100, 101}) EXPECT_EQ(lr_factor(schedule(ScheduleKind::kConstant, 0, 0), step, 100), 1.0);
}

TEST(Schedule, LinearFallsToTheMinimumAtTheEndOfTheRunOrOfDecaySteps) {
  const ScheduleConfig to_end = schedule(ScheduleKind::kLinear, 20, 0);
  EXPECT_DOUBLE_EQ(lr_factor(to_end, 21, 100), 0.1 + 0.9 * 79 / 80);
  EXPECT_DOUBLE_EQ(lr_factor(to_end, 60, 100), 0.55);
  EXPECT_EQ(lr_factor(to_end, 100, 100), 0.1);
  const ScheduleConfig shorter = schedule(ScheduleKind::kLinear, 20, 60);
  EXPECT_DOUBLE_EQ(lr_factor(shorter, 40, 100), 0.55);
  EXPECT_EQ(lr_factor(shorter, 60, 100), 0.1);
  EXPECT_EQ(lr_factor(shorter, 100, 100), 0.1);
  const ScheduleConfig longer_than_run = schedule(ScheduleKind::kLinear, 0, 200);
  EXPECT_DOUBLE_EQ(lr_factor(longer_than_run, 100, 100), 0.55);
}

TEST(Schedule, CosineIsHalfWayInTheMiddleAndExactAtTheEnd) {
  const ScheduleConfig s = schedule(ScheduleKind::kCosine, 20, 0, 0.2);
  EXPECT_DOUBLE_EQ(lr_factor(s, 60, 100), 0.6);
  EXPECT_DOUBLE_EQ(lr_factor(s, 40, 100), 0.2 + 0.8 * (1 + std::sqrt(0.5)) / 2);
  EXPECT_EQ(lr_factor(s, 100, 100), 0.2);
  EXPECT_EQ(lr_factor(schedule(ScheduleKind::kCosine, 0, 0, 0), 100, 100), 0.0);
}

TEST(Schedule, WsdFallsInTheLastStepsOnly) {
  const ScheduleConfig s = schedule(ScheduleKind::kWsd, 10, 40);
  EXPECT_EQ(lr_factor(s, 11, 100), 1.0);
  EXPECT_EQ(lr_factor(s, 60, 100), 1.0);
  EXPECT_DOUBLE_EQ(lr_factor(s, 61, 100), 1 - 0.9 / 40);
  EXPECT_DOUBLE_EQ(lr_factor(s, 80, 100), 0.55);
  EXPECT_EQ(lr_factor(s, 100, 100), 0.1);
}

TEST(Schedule, WsdFallsOverATenthOfTheRunByDefault) {
  const ScheduleConfig s = schedule(ScheduleKind::kWsd, 0, 0);
  EXPECT_EQ(lr_factor(s, 90, 100), 1.0);
  EXPECT_DOUBLE_EQ(lr_factor(s, 95, 100), 0.55);
  EXPECT_EQ(lr_factor(s, 100, 100), 0.1);
  EXPECT_EQ(lr_factor(s, 2, 3), 1.0);  // a tenth of three steps is still one
  EXPECT_EQ(lr_factor(s, 3, 3), 0.1);
}

TEST(Schedule, NeverRisesAfterTheWarmUpAndStaysWithinItsBounds) {
  for (ScheduleKind kind :
       {ScheduleKind::kConstant, ScheduleKind::kLinear, ScheduleKind::kCosine, ScheduleKind::kWsd}) {
    for (int64_t warmup : {0, 1, 7, 30}) {
      for (int64_t decay : {0, 31, 90}) {
        const ScheduleConfig s = schedule(kind, warmup, decay, 0.05);
        for (int64_t step = warmup + 1; step <= 30; ++step) {
          const double factor = lr_factor(s, step, 30);
          EXPECT_GE(factor, 0.05);
          EXPECT_LE(factor, 1.0);
          EXPECT_LE(factor, step == 1 ? 1.0 : lr_factor(s, std::max(warmup, step - 1), 30));
        }
      }
    }
  }
}

}  // namespace
}  // namespace braid
