#include "data/sample_order.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace braid {
namespace {

bool is_permutation(int64_t size, uint64_t seed, uint64_t epoch) {
  std::vector<bool> seen(size, false);
  for (int64_t i = 0; i < size; ++i) {
    const int64_t value = shuffled_index(i, size, seed, epoch);
    if (value < 0 || value >= size || seen[value]) return false;
    seen[value] = true;
  }
  return true;
}

TEST(SampleOrder, IsAPermutationForEverySize) {
  for (int64_t size = 1; size <= 2000; size += size < 300 ? 1 : 37) ASSERT_TRUE(is_permutation(size, 42, 0)) << size;
  for (int64_t size : {1023, 1024, 1025, 4095, 4096, 4097}) ASSERT_TRUE(is_permutation(size, 7, 3)) << size;
  EXPECT_TRUE(is_permutation(1000000, 1234, 1));
}

TEST(SampleOrder, HandlesSizesThatCannotBeListed) {
  const int64_t size = (int64_t{1} << 40) + 12345;
  int64_t low_half = 0;
  for (int64_t i = 0; i < 200; ++i) {
    const int64_t value = shuffled_index(size - 1 - i, size, 1, 0);
    ASSERT_TRUE(0 <= value && value < size);
    low_half += value < size / 2;
  }
  EXPECT_GT(low_half, 60);
  EXPECT_LT(low_half, 140);
}

// The order is part of what resume promises: a run that is continued by a later build must see the same rows.
TEST(SampleOrder, IsPinned) {
  std::vector<int64_t> order;
  for (int64_t i = 0; i < 10; ++i) order.push_back(shuffled_index(i, 10, 1234, 0));
  EXPECT_EQ(order, (std::vector<int64_t>{6, 1, 3, 8, 0, 2, 4, 9, 7, 5}));
}

TEST(SampleOrder, DependsOnSeedAndEpoch) {
  const int64_t size = 1000;
  auto matches = [&](uint64_t seed, uint64_t epoch) {
    int64_t count = 0;
    for (int64_t i = 0; i < size; ++i) count += shuffled_index(i, size, seed, epoch) == shuffled_index(i, size, 5, 5);
    return count;
  };
  EXPECT_EQ(matches(5, 5), size);
  EXPECT_LT(matches(6, 5), 12);  // one match is expected
  EXPECT_LT(matches(5, 6), 12);
}

// Each row is equally likely to come first: chi-square over seeds, 4 sigma.
TEST(SampleOrder, ShowsNoPreference) {
  for (int64_t size : {2, 3, 5, 16, 37}) {
    const int64_t draws = 200 * size;
    for (int64_t index : {int64_t{0}, size - 1}) {
      std::vector<double> count(size, 0);
      for (int64_t seed = 0; seed < draws; ++seed) ++count[shuffled_index(index, size, seed, 0)];
      double chi_square = 0;
      for (double c : count) chi_square += (c - 200) * (c - 200) / 200;
      const double freedom = static_cast<double>(size - 1);
      EXPECT_LT(chi_square, freedom + 4 * std::sqrt(2 * freedom)) << size;
    }
  }
}

}  // namespace
}  // namespace braid
