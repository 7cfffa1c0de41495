#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/balance_loss.h"

namespace braid {

// Whether routers have collapsed: in a layer that has, nearly all tokens go to the same experts, and the others learn
// nothing. For kSteps steps in a row more than kShare of all choices went to as many experts as a token chooses.
// Models with fewer than four times as many experts are not judged: there that is near to balance.
class RouterRule {
 public:
  static constexpr int64_t kSteps = 20;
  static constexpr double kShare = 0.9;

  explicit RouterRule(int64_t experts_per_token) : experts_per_token_(experts_per_token) {}
  // The layers that a step completes the verdict on, once until they recover.
  std::vector<int64_t> add(const std::vector<ExpertLoad>& loads);

 private:
  int64_t experts_per_token_;
  std::vector<int64_t> in_a_row_;  // by layer
};

}  // namespace braid
