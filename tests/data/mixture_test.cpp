#include "data/mixture.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>

#include "kernels/core/error.h"

namespace braid {
namespace {

// Walks the stream and checks what the header promises after every sample. Returns the largest distance from the share.
double check_stream(const std::vector<double>& weights, int64_t samples) {
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  const Mixture mixture(weights);
  std::vector<int64_t> counts(weights.size(), 0);
  double worst = 0;
  for (int64_t n = 0; n < samples; ++n) {
    EXPECT_EQ(mixture.taken(n), counts);
    const MixturePick pick = mixture.pick(n);
    EXPECT_EQ(pick.index, counts.at(pick.source)) << "sample " << n;
    ++counts[pick.source];
    for (size_t i = 0; i < weights.size(); ++i)
      worst = std::max(worst, std::abs(double(counts[i]) - double(n + 1) * weights[i] / total));
  }
  return worst;
}

double bound(size_t sources) { return 0.5 * (1 + std::log2(double(sources))); }

TEST(Mixture, KeepsEachSourceAtItsShare) {
  const std::vector<std::vector<double>> cases = {{1},
                                                  {1, 1},
                                                  {3, 1},
                                                  {0.999, 0.001},
                                                  {1, 1, 1},
                                                  {5, 3, 1, 1, 0.25},
                                                  {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7},
                                                  {100, 1, 1, 1, 1, 1, 1, 1, 1}};
  for (const auto& weights : cases) EXPECT_LE(check_stream(weights, 3000), bound(weights.size())) << weights.size();
}

TEST(Mixture, NeverPicksWeightZero) {
  for (const std::vector<double>& weights : {std::vector<double>{0, 1, 0}, {0, 0, 2}, {1, 0, 0, 1}, {3, 0}})
    for (int64_t n = 0; n < 200; ++n) EXPECT_GT(weights[Mixture(weights).pick(n).source], 0);
}

TEST(Mixture, StaysExactAtLargePositions) {
  const Mixture mixture({0.3, 0.5, 0.2});
  const int64_t far = int64_t{1} << 55;
  std::vector<int64_t> next(3, -1);
  for (int64_t n = far; n < far + 1000; ++n) {
    const MixturePick pick = mixture.pick(n);
    if (next[pick.source] >= 0) {
      ASSERT_EQ(pick.index, next[pick.source]);
    }
    next[pick.source] = pick.index + 1;
  }
  EXPECT_EQ(next[0] + next[1] + next[2], far + 1000);
}

TEST(Mixture, IsPinned) {
  std::string sources;
  const Mixture mixture({5, 3, 1, 0.25});
  for (int64_t n = 0; n < 40; ++n) sources += static_cast<char>('0' + mixture.pick(n).source);
  EXPECT_EQ(sources, "0102010100120010103010010210010012010010");
}

// A source goes on behind its last sample when weights change, and each interval keeps its shares.
TEST(Mixture, ChangesItsWeightsAndLosesNoSample) {
  const std::vector<MixtureInterval> intervals = {
      {0, {3, 1, 0}}, {1000, {0, 1, 1}}, {1007, {1, 1, 1}}, {1007 + 5000, {0, 0, 1}}, {7000, {2, 5, 3}}};
  const Mixture mixture(intervals);
  std::vector<int64_t> counts(3, 0), at_begin;
  for (int64_t n = 0; n < 10000; ++n) {
    const auto behind = std::find_if(intervals.begin(), intervals.end(), [&](auto& i) { return i.first > n; });
    const MixtureInterval& interval = *(behind - 1);
    if (interval.first == n) at_begin = counts;
    ASSERT_EQ(mixture.taken(n), counts) << n;
    const MixturePick pick = mixture.pick(n);
    ASSERT_EQ(pick.index, counts[pick.source]) << n;
    ++counts[pick.source];
    const double total = std::accumulate(interval.weights.begin(), interval.weights.end(), 0.0);
    for (size_t i = 0; i < 3; ++i)
      ASSERT_LE(
          std::abs(double(counts[i] - at_begin[i]) - double(n + 1 - interval.first) * interval.weights[i] / total),
          bound(3))
          << n;
  }
  for (int64_t i = 0; i < 3; ++i) EXPECT_TRUE(mixture.uses(i));
  EXPECT_FALSE(Mixture({1, 0}).uses(1));
}

TEST(Mixture, KnowsHowFarTwoAreTheSame) {
  using Intervals = std::vector<MixtureInterval>;
  const Mixture a(Intervals{{0, {1, 2}}, {100, {2, 1}}});
  const Mixture b(Intervals{{0, {1, 2}}, {50, {1, 2}}, {100, {2, 1}}, {200, {1, 0}}});
  EXPECT_TRUE(a.is_same_before(b, 200));
  EXPECT_FALSE(a.is_same_before(b, 201));
  EXPECT_TRUE(a.is_same_before(Mixture(std::vector<double>{1, 2}), 100));
  EXPECT_FALSE(a.is_same_before(Mixture(std::vector<double>{1, 2}), 101));
  EXPECT_FALSE(a.is_same_before(Mixture(std::vector<double>{1, 3}), 1));
  EXPECT_FALSE(a.is_same_before(Mixture(std::vector<double>{1, 2, 0}), 1));
}

TEST(Mixture, RefusesIntervalsThatAreOutOfOrder) {
  using Intervals = std::vector<MixtureInterval>;
  EXPECT_THROW(Mixture{Intervals({{1, {1.0}}})}, ConfigError);
  EXPECT_THROW(Mixture{Intervals({{0, {1.0}}, {0, {2.0}}})}, ConfigError);
  EXPECT_THROW(Mixture{Intervals({{0, {1.0}}, {5, {1.0, 2.0}}})}, ConfigError);
}

TEST(Mixture, RefusesWeightsThatAreNoShares) {
  const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
  for (const std::vector<double>& weights : {std::vector<double>{}, {0, 0}, {2, -1}, {1, nan}, {inf, 1}})
    EXPECT_THROW(Mixture{weights}, ConfigError);
}

}  // namespace
}  // namespace braid
