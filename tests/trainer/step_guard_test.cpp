#include "trainer/step_guard.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "tests/messages.h"

namespace braid {
namespace {

using namespace braid::testing;

StepResult applied(double loss) {
  StepResult result;
  result.loss_lm = loss;
  result.grad_norm = 1;
  return result;
}

StepResult not_finite() {
  StepResult result = applied(NAN);
  result.problem = "the loss is not finite";
  return result;
}

// A step as train_step makes it: what stands out by the rule, where one is given, is not applied.
StepResult judged(double loss, const SpikeRule* spikes) {
  StepResult result = applied(loss);
  if (spikes) result.spike = spikes->judge(loss, result.grad_norm);
  return result;
}

class StepGuardTest : public ::testing::Test {
 protected:
  StepGuard::Outcome run(const std::vector<StepResult>& results, bool may_go_back = false) {
    calls_ = 0;
    return guard_.run(++step_, may_go_back,
                      [&](const SpikeRule*) { return results.at(static_cast<size_t>(calls_++)); });
  }
  StepGuard::Outcome run_loss(double loss, bool may_go_back = false) {
    calls_ = 0;
    return guard_.run(++step_, may_go_back, [&](const SpikeRule* spikes) { return ++calls_, judged(loss, spikes); });
  }
  void fill_window() {
    for (int64_t i = 0; i < SpikeRule::kWindow; ++i) run_loss(i % 2 == 0 ? 3.9 : 4.1);
  }
  int64_t count(const std::string& event) const { return std::count(events_.begin(), events_.end(), event); }

  std::vector<std::string> said_, events_;
  StepGuard guard_{{[this](const std::string& text) { said_.push_back(text); },
                    [this](const std::string& event, const std::string&) { events_.push_back(event); }}};
  int64_t step_ = 0, calls_ = 0;
};

TEST_F(StepGuardTest, AGoodStepIsComputedOnceAndNothingIsSaid) {
  EXPECT_EQ(run({applied(4)}).result.loss_lm, 4);
  EXPECT_EQ(calls_, 1);
  EXPECT_TRUE(said_.empty() && events_.empty());
}

TEST_F(StepGuardTest, WhatIsFiniteTheSecondTimeIsApplied) {
  const StepGuard::Outcome outcome = run({not_finite(), applied(4)});
  EXPECT_TRUE(outcome.result.is_applied());
  EXPECT_FALSE(outcome.goes_back);
  EXPECT_EQ(events_, std::vector<std::string>{"transient_fault"});
}

TEST_F(StepGuardTest, WhatIsNotFiniteTwiceIsLeftOutAndThreeInARowEndTheRun) {
  const std::vector<StepResult> bad{not_finite(), not_finite()};
  for (int i = 0; i < 2; ++i) {
    run(bad), run(bad);
    run({applied(4)});
  }
  EXPECT_EQ(count("skipped_step"), 4);
  run(bad), run(bad);
  expect_contains(
      message_of<NumericsError>([&] { run(bad); }),
      "not finite, also when computed again; no update was applied, and 7 of the last 9 steps were like this");
}

TEST_F(StepGuardTest, ElevenOfAThousandEndTheRun) {
  const std::vector<StepResult> bad{not_finite(), not_finite()};
  for (int64_t i = 0; i < StepGuard::kSkips; ++i) run(bad), run({applied(4)});
  EXPECT_THROW(run(bad), NumericsError);
}

TEST_F(StepGuardTest, OldOnesAreForgotten) {
  const std::vector<StepResult> bad{not_finite(), not_finite()};
  for (int64_t i = 0; i < StepGuard::kSkips; ++i) run(bad), run({applied(4)});
  step_ = StepGuard::kWindow;  // behind it the first is out of the window
  run(bad);
  EXPECT_EQ(count("skipped_step"), StepGuard::kSkips + 1);
}

TEST_F(StepGuardTest, WhatStandsOutIsComputedAgainAndApplied) {
  fill_window();
  const StepGuard::Outcome outcome = run_loss(31);
  EXPECT_EQ(calls_, 2);
  EXPECT_TRUE(outcome.result.is_applied());
  EXPECT_FALSE(outcome.goes_back);
  EXPECT_EQ(events_, std::vector<std::string>{"spike"});
}

TEST_F(StepGuardTest, WhereTheRunMayGoBackNothingIsAppliedThatStandsOutTwice) {
  fill_window();
  const StepGuard::Outcome outcome = run_loss(31, true);
  EXPECT_FALSE(outcome.result.is_applied());
  EXPECT_TRUE(outcome.goes_back);
  expect_contains(trouble_of(step_, outcome.result), "step 129: the loss 31 is more than 6");
  EXPECT_EQ(run_loss(4, true).result.loss_lm, 4);
}

TEST_F(StepGuardTest, WhereTheRunMayGoBackThreeInARowDoNotEndIt) {
  const std::vector<StepResult> bad{not_finite(), not_finite()};
  EXPECT_FALSE(run(bad, true).goes_back);
  EXPECT_FALSE(run(bad, true).goes_back);
  EXPECT_TRUE(run(bad, true).goes_back);
}

TEST_F(StepGuardTest, AnotherStartGoesOnWithWhatItHasSeen) {
  fill_window();
  run({not_finite(), not_finite()});
  run({not_finite(), not_finite()});
  CheckpointInfo info;
  guard_.store(info);
  StepGuard other({[](const std::string&) {}, [](const std::string&, const std::string&) {}});
  other.restore(info);
  int64_t calls = 0;
  other.run(step_ + 1, true, [&](const SpikeRule* spikes) { return ++calls, judged(31, spikes); });
  EXPECT_EQ(calls, 2) << "the window is forgotten";
  EXPECT_THROW(other.run(step_ + 1, false, [&](const SpikeRule*) { return not_finite(); }), NumericsError)
      << "steps left out are forgotten";
}

}  // namespace
}  // namespace braid
