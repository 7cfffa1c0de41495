#include "trainer/router_rule.h"

#include <gtest/gtest.h>

namespace braid {
namespace {

constexpr int64_t kPerToken = 2;

ExpertLoad load(std::vector<int64_t> counts) {
  ExpertLoad load;
  load.counts = std::move(counts);
  return load;
}
const ExpertLoad kBalanced = load({100, 90, 110, 100, 95, 105, 100, 100});
const ExpertLoad kCollapsed = load({0, 400, 3, 0, 396, 0, 1, 0});
const ExpertLoad kUneven = load({10, 360, 10, 10, 360, 10, 20, 20});  // exactly 90 %

TEST(RouterRule, NamesALayerThatStaysCollapsedOnce) {
  RouterRule rule(kPerToken);
  for (int64_t i = 1; i < RouterRule::kSteps; ++i) EXPECT_TRUE(rule.add({kBalanced, kCollapsed, kUneven}).empty());
  EXPECT_EQ(rule.add({kBalanced, kCollapsed, kUneven}), std::vector<int64_t>{1});
  EXPECT_TRUE(rule.add({kBalanced, kCollapsed, kUneven}).empty());
}

TEST(RouterRule, ABalancedStepBeginsAnew) {
  RouterRule rule(kPerToken);
  for (int64_t i = 1; i < RouterRule::kSteps; ++i) rule.add({kCollapsed});
  EXPECT_TRUE(rule.add({kBalanced}).empty());
  for (int64_t i = 1; i < RouterRule::kSteps; ++i) EXPECT_TRUE(rule.add({kCollapsed}).empty());
  EXPECT_EQ(rule.add({kCollapsed}).size(), 1u);
}

TEST(RouterRule, FewExpertsAreNotJudged) {
  RouterRule rule(kPerToken);
  for (int64_t i = 0; i < 2 * RouterRule::kSteps; ++i) EXPECT_TRUE(rule.add({load({400, 400, 0, 0, 0, 0, 0})}).empty());
}

}  // namespace
}  // namespace braid
