#include "data/mixture.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/core/error.h"

namespace braid {
namespace {

// Walks the stream and checks what the header promises after every sample. Returns the largest distance from the share.
double check_stream(const std::vector<double>& weights, int64_t samples) {
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  std::vector<int64_t> counts(weights.size(), 0);
  double worst = 0;
  for (int64_t n = 0; n < samples; ++n) {
    const MixturePick pick = mixture_pick(n, weights);
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
    for (int64_t n = 0; n < 200; ++n) EXPECT_GT(weights[mixture_pick(n, weights).source], 0);
}

TEST(Mixture, StaysExactAtLargePositions) {
  const std::vector<double> weights = {0.3, 0.5, 0.2};
  const int64_t far = int64_t{1} << 55;
  std::vector<int64_t> next(3, -1);
  for (int64_t n = far; n < far + 1000; ++n) {
    const MixturePick pick = mixture_pick(n, weights);
    if (next[pick.source] >= 0) {
      ASSERT_EQ(pick.index, next[pick.source]);
    }
    next[pick.source] = pick.index + 1;
  }
  EXPECT_EQ(next[0] + next[1] + next[2], far + 1000);
}

TEST(Mixture, RefusesWeightsThatAreNoShares) {
  const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
  for (const std::vector<double>& weights : {std::vector<double>{}, {0, 0}, {2, -1}, {1, nan}, {inf, 1}})
    EXPECT_THROW(mixture_pick(0, weights), ConfigError);
}

}  // namespace
}  // namespace braid
