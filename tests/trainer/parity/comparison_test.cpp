#include "trainer/parity/comparison.h"

#include <cmath>
#include <limits>

#include "tests/testing.h"

namespace braid {
namespace {

using namespace braid::testing;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

Distance distance_of(const std::vector<float>& got, const std::vector<float>& expected) {
  const auto n = static_cast<int64_t>(got.size());
  Distance distance;
  distance.add(tensor_of(got, {n}), tensor_of(expected, {n}), 0);
  return distance;
}

const ParityBounds kBounds = parity_bounds(Precision::kFp32, {});

TEST(Distance, HasClosedForms) {
  const Distance d = distance_of({3, 4, 0}, {4, 3, 0});
  EXPECT_DOUBLE_EQ(d.relative_rms(), std::sqrt(2.0) / 5);
  EXPECT_DOUBLE_EQ(d.cosine(), 24.0 / 25);
  EXPECT_DOUBLE_EQ(d.expected_rms(), 5 / std::sqrt(3.0));
}

TEST(Distance, OfEqualTensorsIsZeroAndOfOppositeOnesTwo) {
  EXPECT_EQ(distance_of({1, -2}, {1, -2}).relative_rms(), 0);
  EXPECT_DOUBLE_EQ(distance_of({1, -2}, {1, -2}).cosine(), 1);
  EXPECT_DOUBLE_EQ(distance_of({-1, 2}, {1, -2}).relative_rms(), 2);
  EXPECT_DOUBLE_EQ(distance_of({-1, 2}, {1, -2}).cosine(), -1);
}

TEST(Distance, KnowsZeroTensors) {
  EXPECT_EQ(distance_of({0, 0}, {0, 0}).relative_rms(), 0);
  EXPECT_EQ(distance_of({0, 0}, {0, 0}).cosine(), 1);
  EXPECT_EQ(distance_of({0, 1}, {0, 0}).relative_rms(), std::numeric_limits<double>::infinity());
  EXPECT_EQ(distance_of({0, 1}, {0, 0}).cosine(), 0);
  EXPECT_EQ(distance_of({0, 0}, {0, 1}).relative_rms(), 1);
}

// Blocks in any dtype add up to the whole, and the worst element is the one of the whole tensor.
TEST(Distance, AddsUpOverBlocks) {
  const std::vector<float> got = {1, 2, 3, 4, 5, 6}, expected = {1, 2, 3.5, 4, 4.25, 6};
  const Distance whole = distance_of(got, expected);
  EXPECT_EQ(whole.worst, 4);
  EXPECT_EQ(whole.worst_got, 5);
  EXPECT_EQ(whole.worst_expected, 4.25);
  for (DType dtype : {DType::kF32, DType::kF64}) {
    Distance blocks;
    for (int64_t first : {0, 2, 4})
      blocks.add(converted(tensor_of(got, {6}), dtype).rows(first, first + 2),
                 tensor_of(expected, {6}).rows(first, first + 2), first);
    EXPECT_EQ(blocks.difference_squares, whole.difference_squares);
    EXPECT_EQ(blocks.products, whole.products);
    EXPECT_EQ(blocks.count, whole.count);
    EXPECT_EQ(blocks.worst, whole.worst);
  }
}

TEST(Judge, NamesTheWorstElementByItsCoordinates) {
  const TensorVerdict verdict = judge("logits", {1, 2, 3}, distance_of({0, 0, 0, 0, 9, 0}, {0, 0, 0, 0, 1, 0}), {1, 0});
  EXPECT_EQ(verdict.worst_index, (std::vector<int64_t>{0, 1, 1}));
  EXPECT_EQ(verdict.worst_got, 9);
  EXPECT_FALSE(verdict.passed);
}

// A scaled tensor has cosine 1: only the relative error sees it.
TEST(Judge, FailsAReferenceThatIsScaled) {
  const std::vector<float> got = {1, -2, 3, 4};
  std::vector<float> scaled = got;
  for (float& value : scaled) value *= 1.01f;
  const TensorVerdict verdict = judge("t", {4}, distance_of(got, scaled), kBounds.gradients);
  EXPECT_NEAR(verdict.relative_rms, 0.01 / 1.01, 1e-6);
  EXPECT_NEAR(verdict.cosine, 1, 1e-12);
  EXPECT_FALSE(verdict.passed);
  EXPECT_TRUE(judge("t", {4}, distance_of(got, scaled), {0.01, 0.999}).passed);
}

TEST(Judge, BoundsAreInclusiveAndAskForBothMeasures) {
  const Distance d = distance_of({3, 4}, {4, 3});
  EXPECT_TRUE(judge("t", {2}, d, {d.relative_rms(), d.cosine()}).passed);
  EXPECT_FALSE(judge("t", {2}, d, {d.relative_rms() * 0.999, d.cosine()}).passed);
  EXPECT_FALSE(judge("t", {2}, d, {d.relative_rms(), d.cosine() * 1.001}).passed);
}

TEST(Judge, FailsWhatIsNotFinite) {
  const DistanceBound none = {std::numeric_limits<double>::infinity(), -1};
  for (float bad : {kNan, std::numeric_limits<float>::infinity()}) {
    const TensorVerdict verdict = judge("t", {3}, distance_of({1, bad, 50}, {1, 2, 3}), none);
    EXPECT_FALSE(verdict.passed) << bad;
    EXPECT_EQ(verdict.worst_index, (std::vector<int64_t>{1})) << bad;
  }
}

TEST(JudgeGradient, ComparesAnErrorAtTheLevelOfZeroWithTheLargestGradient) {
  const double largest = 10;
  const auto judged = [&](float got, float expected) {
    return judge_gradient("grad.x", {2}, distance_of({got, got}, {expected, expected}), largest, kBounds);
  };
  EXPECT_TRUE(judged(0, 0).passed);
  EXPECT_TRUE(judged(0.9e-5f, 0).passed);
  EXPECT_NEAR(judged(0.9e-5f, 0).relative_rms, 0.9e-6, 1e-12);
  EXPECT_FALSE(judged(1.1e-5f, 0).passed);
  EXPECT_TRUE(judged(-1e-9f, 1e-9f).passed) << "rounding around zero has any sign";
  EXPECT_FALSE(judged(-2e-5f, 2e-5f).passed) << "above the level of a zero, direction counts";
  EXPECT_FALSE(judged(3.2e-5f, 2e-5f).passed) << "and so does the relative error";
  EXPECT_TRUE(judged(2.5e-5f, 2e-5f).passed) << "unless it is at that level itself";
  EXPECT_NEAR(judged(2.5e-5f, 2e-5f).relative_rms, 5e-7, 1e-12);
  EXPECT_TRUE(judged(2.0001e-5f, 2e-5f).passed);
  EXPECT_NEAR(judged(2.0001e-5f, 2e-5f).relative_rms, 5e-5, 1e-7) << "relative to itself where that is enough";
  EXPECT_FALSE(judged(kNan, 0).passed);
}

TEST(JudgeGradient, WorksWhenEveryGradientIsZero) {
  EXPECT_TRUE(judge_gradient("grad.x", {1}, distance_of({0}, {0}), 0, kBounds).passed);
  EXPECT_FALSE(judge_gradient("grad.x", {1}, distance_of({1e-9f}, {0}), 0, kBounds).passed);
}

TEST(JudgeCurve, TakesTheLargestRelativeDifference) {
  const CurveVerdict verdict = judge_curve("losses", {2, 4.002, 10}, {2, 4, 10.001}, 1e-3);
  EXPECT_NEAR(verdict.largest_difference, 5e-4, 1e-12);
  EXPECT_EQ(verdict.worst, 1);
  EXPECT_TRUE(verdict.passed);
  EXPECT_FALSE(judge_curve("losses", {2, 4.002}, {2, 4}, 4e-4).passed);
  EXPECT_FALSE(judge_curve("losses", {2, kNan, 9}, {2, 4, 8}, 10).passed);
  EXPECT_EQ(judge_curve("losses", {2, kNan, 9}, {2, 4, 8}, 10).worst, 1);
  EXPECT_TRUE(judge_curve("grad_norms", {0}, {0}, 1e-4).passed);
}

TEST(ParityBounds, FollowTheTolerance) {
  EXPECT_EQ(kBounds.logits.relative_rms, 1e-4);
  EXPECT_EQ(kBounds.logits.cosine, 1 - 1e-6);
  EXPECT_DOUBLE_EQ(kBounds.loss, 1e-6);
  EXPECT_EQ(kBounds.curves, 1e-4);
  const ParityBounds loose = parity_bounds(Precision::kFp64, 1e-2);
  EXPECT_EQ(loose.gradients.relative_rms, 1e-2);
  EXPECT_EQ(loose.gradients.cosine, 1 - 1e-4);
  EXPECT_DOUBLE_EQ(loose.loss, 1e-4);
  EXPECT_EQ(loose.zero_gradient, kBounds.zero_gradient);
  EXPECT_EQ(parity_bounds(Precision::kBf16, {}).gradients.cosine, 0.999);
  EXPECT_THROW(parity_bounds(Precision::kBf16, 1e-2), ConfigError);
  for (double bad : {0.0, -1.0, double(kNan), std::numeric_limits<double>::infinity()})
    EXPECT_THROW(parity_bounds(Precision::kFp32, bad), ConfigError) << bad;
}

}  // namespace
}  // namespace braid
