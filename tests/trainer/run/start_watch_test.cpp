#include "trainer/run/start_watch.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include "tests/parallel/mpi_testing.h"

namespace braid {
namespace {

using namespace braid::testing;

std::vector<int> standing(StandingSiblings& watch, const std::vector<Sibling>& siblings, int64_t now_ms) {
  std::vector<int> ranks;
  for (const Sibling& s : watch.for_too_long(siblings, now_ms)) ranks.push_back(s.rank);
  return ranks;
}

TEST(StandingSiblings, AreThoseThatWereStoppedTheWholeTime) {
  StandingSiblings watch(1000);
  const Sibling runs = {.rank = 0}, stands = {.rank = 1, .stopped = true}, goes_on = {.rank = 1};
  EXPECT_TRUE(standing(watch, {runs, stands}, 5000).empty());
  EXPECT_TRUE(standing(watch, {runs, stands}, 5999).empty());
  EXPECT_EQ(standing(watch, {runs, stands}, 6000), std::vector<int>{1});
  EXPECT_TRUE(standing(watch, {runs, goes_on}, 6100).empty());
  EXPECT_TRUE(standing(watch, {runs, stands}, 6200).empty());
  EXPECT_EQ(standing(watch, {runs, stands}, 7200), std::vector<int>{1});
  watch.forget();
  EXPECT_TRUE(standing(watch, {runs, stands}, 9000).empty());
}

TEST(StandingSiblings, AreThoseThatSleptTheWholeTimeWhileOthersWaitForThem) {
  using enum Sibling::Place;
  const Sibling waits = {.rank = 0, .asleep = true, .place = kMeets};
  const Sibling sleeps = {.rank = 1, .asleep = true, .place = kOnItsWay};
  const Sibling works = {.rank = 1, .place = kOnItsWay, .work = 1};
  const Sibling reads = {.rank = 1, .asleep = true, .place = kOnItsWay, .work = 2};
  StandingSiblings watch(1000);
  EXPECT_TRUE(standing(watch, {waits, sleeps}, 5000).empty());
  EXPECT_EQ(standing(watch, {waits, sleeps}, 6000), std::vector<int>{1});
  EXPECT_TRUE(standing(watch, {waits, works}, 6100).empty());
  EXPECT_TRUE(standing(watch, {waits, sleeps}, 6200).empty());
  EXPECT_TRUE(standing(watch, {waits, reads}, 7200).empty());  // it has worked in between
  EXPECT_EQ(standing(watch, {waits, reads}, 8200), std::vector<int>{1});
  // Nobody is late while nobody waits, nor once all have come.
  StandingSiblings nobody(1000);
  for (const int64_t now : {0, 1000, 2000}) {
    EXPECT_TRUE(standing(nobody, {{.rank = 0, .asleep = true, .place = kOnItsWay}, sleeps}, now).empty());
    EXPECT_TRUE(standing(nobody, {waits, {.rank = 1, .asleep = true, .place = kMeets}}, now).empty());
    EXPECT_TRUE(standing(nobody, {waits, {.rank = 1, .asleep = true}}, now).empty());
  }
  // One that is stopped comes first: one that sleeps may wait for it.
  StandingSiblings both(1000);
  const Sibling stopped = {.rank = 2, .stopped = true};
  standing(both, {waits, sleeps, stopped}, 0);
  EXPECT_EQ(standing(both, {waits, sleeps, stopped}, 1000), (std::vector<int>{2, 1}));
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
