#include "trainer/router_rule.h"

#include <algorithm>
#include <functional>
#include <numeric>

namespace braid {

std::vector<int64_t> RouterRule::add(const std::vector<ExpertLoad>& loads) {
  std::vector<int64_t> collapsed;
  in_a_row_.resize(loads.size());
  for (size_t layer = 0; layer < loads.size(); ++layer) {
    std::vector<int64_t> counts = loads[layer].counts;
    if (std::ssize(counts) < 4 * experts_per_token_) continue;
    const auto busiest = counts.begin() + experts_per_token_;
    std::nth_element(counts.begin(), busiest, counts.end(), std::greater<>());
    const auto all = double(std::accumulate(counts.begin(), counts.end(), int64_t{0}));
    const bool is_so = double(std::accumulate(counts.begin(), busiest, int64_t{0})) > kShare * all;
    in_a_row_[layer] = is_so ? in_a_row_[layer] + 1 : 0;
    if (in_a_row_[layer] == kSteps) collapsed.push_back(static_cast<int64_t>(layer));
  }
  return collapsed;
}

}  // namespace braid
