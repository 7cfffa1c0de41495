#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace braid {

// Which rank holds the others up. A step takes as long as its slowest rank; what a rank needs of its own, without its
// waits for others in collectives, tells which one that is.
struct OwnTimes {
  int64_t slowest = 0;  // the rank
  double most_ms = 0, median_ms = 0;
};
OwnTimes own_times(const std::vector<double>& ms_of_ranks);  // of one step, by rank

// A rank is slow whose mean over kSteps steps is more than kRatio times the median of all ranks, and more beyond it
// than kShare of a step, twice in a row: on cores that others want any rank is slow for a moment.
class SlowRankRule {
 public:
  static constexpr int64_t kSteps = 10;
  static constexpr double kRatio = 1.5, kShare = 0.1;

  // In words, once for each time that a rank becomes slow; empty otherwise: "rank 3 takes 210 ms of its own a step, the
  // median of all ranks is 100 ms, over 10 steps, as over the 10 before: the others wait for it".
  std::string add(const std::vector<double>& ms_of_ranks, double step_ms);

 private:
  std::vector<double> sums_;
  double step_sum_ = 0;
  int64_t steps_ = 0;
  int64_t slow_ = -1, told_ = -1;  // the rank of the last kSteps steps, and the one that was told of
};

}  // namespace braid
