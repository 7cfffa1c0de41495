#include "kernels/core/turn_times.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

namespace braid {
namespace {

TEST(TurnTimes, TimesEveryTurnInOrder) {
  Context ctx = Context::cpu();
  std::vector<int> turns;
  const std::vector<double> ms = turn_times_ms(ctx, 3, Launch::kGraph, {}, [&](int turn) {
    turns.push_back(turn);
    std::this_thread::sleep_for(std::chrono::milliseconds(turn == 1 ? 40 : 0));
  });
  EXPECT_EQ(turns, (std::vector<int>{0, 1, 2}));
  ASSERT_EQ(ms.size(), 3u);
  EXPECT_GE(ms[1], 40);
  EXPECT_LT(ms[0], ms[1]);
  EXPECT_GE(ms[2], 0);
}

}  // namespace
}  // namespace braid
