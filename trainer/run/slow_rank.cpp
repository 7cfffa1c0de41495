#include "trainer/run/slow_rank.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace braid {

OwnTimes own_times(const std::vector<double>& ms_of_ranks) {
  const auto most = std::max_element(ms_of_ranks.begin(), ms_of_ranks.end());
  std::vector<double> sorted = ms_of_ranks;
  const auto middle = sorted.begin() + (std::ssize(sorted) - 1) / 2;  // of two ranks the faster one
  std::nth_element(sorted.begin(), middle, sorted.end());
  return {most - ms_of_ranks.begin(), *most, *middle};
}

std::string SlowRankRule::add(const std::vector<double>& ms_of_ranks, double step_ms) {
  sums_.resize(ms_of_ranks.size());
  for (size_t rank = 0; rank < sums_.size(); ++rank) sums_[rank] += ms_of_ranks[rank] / double(kSteps);
  step_sum_ += step_ms / double(kSteps);
  if (++steps_ < kSteps) return "";
  const OwnTimes mean = own_times(std::exchange(sums_, {}));
  const double step = std::exchange(step_sum_, 0);
  steps_ = 0;
  const bool is_slow = mean.most_ms > kRatio * mean.median_ms && mean.most_ms - mean.median_ms > kShare * step;
  const int64_t now = is_slow ? mean.slowest : -1, before = std::exchange(slow_, now);
  if (!is_slow) told_ = -1;
  if (!is_slow || before != now || told_ == now) return "";
  told_ = now;
  return fmt::format(
      "rank {} takes {:.3g} ms of its own a step, the median of all ranks is {:.3g} ms, over {} steps, as over "
      "the {} before: the others wait for it",
      mean.slowest, mean.most_ms, mean.median_ms, kSteps, kSteps);
}

}  // namespace braid
