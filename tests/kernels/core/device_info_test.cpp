#include "kernels/core/device_info.h"

#include <gtest/gtest.h>

namespace braid {
namespace {

TEST(HasCodeFor, LaterGpusRunThePtxOfAnEarlierArchitecture) {
  EXPECT_TRUE(has_code_for("80", 80));
  EXPECT_TRUE(has_code_for("80", 90));
  EXPECT_TRUE(has_code_for("80-virtual", 120));
  EXPECT_FALSE(has_code_for("90", 80));
}

TEST(HasCodeFor, SuffixesBindToOneGpuOrFamily) {
  EXPECT_TRUE(has_code_for("90a", 90));
  EXPECT_FALSE(has_code_for("90a", 100));
  EXPECT_FALSE(has_code_for("90a-real", 80));
  EXPECT_TRUE(has_code_for("100f", 103));
  EXPECT_FALSE(has_code_for("100f", 120));
  EXPECT_TRUE(has_code_for("80-real", 86));
  EXPECT_FALSE(has_code_for("80-real", 90));
}

TEST(HasCodeFor, AnyEntryOfTheListCounts) {
  EXPECT_TRUE(has_code_for("80;90a;100;120", 90));
  EXPECT_TRUE(has_code_for("90a;100", 120));
  EXPECT_FALSE(has_code_for("90a;120", 100));
  EXPECT_TRUE(has_code_for("native", 75));
  EXPECT_FALSE(has_code_for("", 90));
}

}  // namespace
}  // namespace braid
