#include "kernels/core/segments.h"

#include <gtest/gtest.h>

namespace braid {
namespace {

TEST(Segments, ByLengthGoesFromTheLongestToTheShortestAndKeepsTheOrderOfEqualOnes) {
  EXPECT_EQ(Segments::packed({3, 70, 5, 70, 1, 5}).by_length(), (std::vector<int32_t>{1, 3, 2, 5, 0, 4}));
  EXPECT_EQ(Segments::whole_rows(3, 8).by_length(), (std::vector<int32_t>{0, 1, 2}));
  EXPECT_TRUE(Segments::packed({}).by_length().empty());
}

}  // namespace
}  // namespace braid
