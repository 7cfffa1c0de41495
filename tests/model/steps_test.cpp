#include "model/steps.h"

#include <gtest/gtest.h>

#include <stdexcept>
#include <string>
#include <vector>

namespace braid {
namespace {

Steps count(std::string name, int steps, std::vector<std::string>& log) {
  for (int i = 1; i < steps; ++i) {
    log.push_back(name + std::to_string(i));
    co_yield Steps::Pause();
  }
  log.push_back(name + std::to_string(steps));
}

Steps fail_in_second(std::vector<std::string>& log) {
  log.push_back("first");
  co_yield Steps::Pause();
  throw std::runtime_error("second");
}

struct Noted {
  std::vector<std::string>& log;
  ~Noted() { log.push_back("released"); }
};
Steps hold(std::vector<std::string>& log) {
  const Noted noted{log};
  co_yield Steps::Pause();
  log.push_back("never");
}

TEST(Steps, BeginWithTheFirstNextAndEndBehindTheLast) {
  std::vector<std::string> log;
  Steps steps = count("a", 2, log);
  EXPECT_TRUE(log.empty());
  EXPECT_TRUE(steps.next());
  EXPECT_FALSE(steps.next());
  EXPECT_EQ(log, (std::vector<std::string>{"a1", "a2"}));
  count("b", 1, log).run();
  EXPECT_EQ(log.back(), "b1");
}

TEST(Steps, TakeTurnsSideBySide) {
  std::vector<std::string> log;
  Context ctx = Context::cpu();
  std::vector<StepsOn> both;
  both.push_back({&ctx, count("a", 3, log)});
  both.push_back({&ctx.second(), count("b", 3, log)});
  run_side_by_side(both);
  EXPECT_EQ(log, (std::vector<std::string>{"a1", "b1", "a2", "b2", "a3", "b3"}));
}

Steps with_parts(std::vector<std::string>& log) {
  log.push_back("before");
  co_yield count("a", 2, log);
  co_yield count("b", 1, log);
  log.push_back("behind");
  co_yield Steps::Pause();
  co_yield fail_in_second(log);
  log.push_back("never");
}

TEST(Steps, TakeThePausesOfTheirPartsAndTheirErrors) {
  std::vector<std::string> log;
  Steps steps = with_parts(log);
  EXPECT_TRUE(steps.next());
  EXPECT_EQ(log, (std::vector<std::string>{"before", "a1"}));
  EXPECT_TRUE(steps.next());
  EXPECT_EQ(log, (std::vector<std::string>{"before", "a1", "a2", "b1", "behind"}));
  EXPECT_TRUE(steps.next());
  EXPECT_EQ(log.back(), "first");
  EXPECT_THROW(steps.next(), std::runtime_error);
  EXPECT_EQ(log.back(), "first");
}

TEST(Steps, PassErrorsOn) {
  std::vector<std::string> log;
  Steps steps = fail_in_second(log);
  EXPECT_TRUE(steps.next());
  EXPECT_THROW(steps.next(), std::runtime_error);
}

TEST(Steps, ReleaseWhatTheyHoldWhereTheyAreLeft) {
  std::vector<std::string> log;
  {
    Steps steps = hold(log);
    steps.next();
    EXPECT_TRUE(log.empty());
  }
  EXPECT_EQ(log, std::vector<std::string>{"released"});
}

}  // namespace
}  // namespace braid
