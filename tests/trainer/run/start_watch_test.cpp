#include "trainer/run/start_watch.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include "tests/parallel/mpi_testing.h"

namespace braid {
namespace {

using namespace braid::testing;

TEST(StoppedSiblings, AreThoseThatWereStoppedTheWholeTime) {
  StoppedSiblings stopped(1000);
  const Sibling runs = {0, 10, false}, stands = {1, 11, true}, goes_on = {1, 11, false};
  EXPECT_TRUE(stopped.for_too_long({runs, stands}, 5000).empty());
  EXPECT_TRUE(stopped.for_too_long({runs, stands}, 5999).empty());
  EXPECT_EQ(stopped.for_too_long({runs, stands}, 6000), std::vector<int>{1});
  EXPECT_TRUE(stopped.for_too_long({runs, goes_on}, 6100).empty());
  EXPECT_TRUE(stopped.for_too_long({runs, stands}, 6200).empty());
  EXPECT_EQ(stopped.for_too_long({runs, stands}, 7200), std::vector<int>{1});
  stopped.forget();
  EXPECT_TRUE(stopped.for_too_long({runs, stands}, 9000).empty());
}

TEST(Siblings, AreTheRanksOfThisHost) {
  const std::vector<Sibling> all = siblings();
  if (world().size() == 1) return;
  ASSERT_EQ(std::ssize(all), world().size());
  for (size_t i = 0; i < all.size(); ++i) {
    EXPECT_EQ(all[i].rank, static_cast<int>(i));
    EXPECT_EQ(all[i].pid == getpid(), all[i].rank == world().rank());
    EXPECT_FALSE(all[i].stopped);
  }
  Context ctx = Context::cpu();
  world().barrier(ctx);  // nobody leaves before the others have looked
}

}  // namespace
}  // namespace braid
