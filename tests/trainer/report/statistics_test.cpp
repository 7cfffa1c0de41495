#include "trainer/report/statistics.h"

#include <gtest/gtest.h>

#include <cmath>

namespace braid {
namespace {

RunData run_of(const std::vector<double>& losses, const std::string& order) {
  RunData run;
  run.data_order = order;
  for (size_t i = 0; i < losses.size(); ++i) {
    TrainPoint p;
    p.step = static_cast<int64_t>(i) + 1;
    p.loss = losses[i];
    run.train.push_back(p);
  }
  return run;
}

// Mean 5, deviation 2.138090 and t 2.365 for 7 degrees of freedom.
TEST(Estimate, IsMeanDeviationAndStudentsInterval) {
  const Estimate e = estimate({2, 4, 4, 4, 5, 5, 7, 9});
  EXPECT_DOUBLE_EQ(e.mean, 5);
  EXPECT_NEAR(e.standard_deviation, 2.1380899, 1e-6);
  EXPECT_NEAR(e.half_width, 2.365 * 2.1380899 / std::sqrt(8.0), 1e-6);
  EXPECT_EQ(to_text(e, 2), "5.00 ± 1.79");
}

TEST(Estimate, OfOneValueHasNoInterval) {
  EXPECT_TRUE(std::isnan(estimate({3}).half_width));
  EXPECT_EQ(to_text(estimate({3}), 1), "3.0");
  EXPECT_EQ(to_text(estimate({}), 1), "–");
}

TEST(Estimate, TailOfTheTableIsContinuous) {
  std::vector<double> values;
  for (int i = 0; i < 31; ++i) values.push_back(i % 2);
  const Estimate at30 = estimate(values);
  values.push_back(0);
  const Estimate at31 = estimate(values);
  const double t30 = at30.half_width / at30.standard_deviation * std::sqrt(31.0);
  const double t31 = at31.half_width / at31.standard_deviation * std::sqrt(32.0);
  EXPECT_NEAR(t30, 2.042, 1e-9);
  EXPECT_NEAR(t31, 2.0395, 3e-4);
}

// What both see in a step (here: a large common noise) must not widen the interval.
TEST(LossDifference, PairsSteps) {
  std::vector<double> a, b;
  for (int i = 0; i < 400; ++i) {
    const double noise = std::sin(i * 12.9898) * 3;
    a.push_back(2 + noise);
    b.push_back(2.25 + noise + (i % 2 ? 0.001 : -0.001));
  }
  const LossDifference d = loss_difference(run_of(a, "x"), run_of(b, "x"));
  EXPECT_TRUE(d.same_data);
  EXPECT_NEAR(d.difference.mean, 0.25, 1e-3);
  EXPECT_LT(d.difference.half_width, 1e-3);
  EXPECT_EQ(d.first_step, 301);
  EXPECT_EQ(d.last_step, 400);
}

TEST(LossDifference, HasNoIntervalForAnotherOrderOfTheData) {
  const LossDifference d = loss_difference(run_of({3, 2, 1, 1}, "x"), run_of({3, 2, 2, 2}, "y"));
  EXPECT_FALSE(d.same_data);
  EXPECT_TRUE(std::isnan(d.difference.half_width));
  EXPECT_FALSE(loss_difference(run_of({1}, ""), run_of({1}, "")).same_data);  // not known is not the same
}

TEST(LossDifference, OfRunsWithoutACommonStepIsEmpty) {
  EXPECT_EQ(loss_difference(run_of({}, "x"), run_of({1, 2}, "x")).difference.count, 0);
}

}  // namespace
}  // namespace braid
