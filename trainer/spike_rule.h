#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace braid {

// The losses and gradient norms of the last updates, and whether those of another step stand out from them: a number
// more than kSigmas standard deviations above their mean is what a flipped bit makes of it, or data that is not like
// the rest. Nothing stands out before the window is full. Source: the skip rule of OLMo 2 (arXiv:2501.00656, section
// 3).
class SpikeRule {
 public:
  static constexpr int64_t kWindow = 128;
  static constexpr double kSigmas = 6;

  // In words, empty if neither does: "the loss 31.4 is more than 6 standard deviations (0.21) above the mean 4.2 of the
  // last 128 steps".
  std::string judge(double loss, double grad_norm) const;
  void add(double loss, double grad_norm);  // of an update that was applied
  // What it has seen, oldest first, for another start to go on with.
  const std::vector<double>& losses() const { return losses_; }
  const std::vector<double>& grad_norms() const { return grad_norms_; }

 private:
  std::vector<double> losses_, grad_norms_;
};

}  // namespace braid
