#include "data/mixture.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <numeric>

#include "kernels/core/error.h"

namespace braid {
namespace {

__extension__ using Wide = unsigned __int128;
constexpr int kShareBits = 62;

// round(count * share), share in units of 2^-62. In whole numbers, so that one more sample adds exactly 0 or 1.
int64_t share_of(int64_t count, uint64_t share) {
  const Wide half = Wide{1} << (kShareBits - 1);
  return static_cast<int64_t>((static_cast<Wide>(count) * share + half) >> kShareBits);
}

// The sources are the leaves of a balanced binary tree. A node hands each of its samples to its left or right half so
// that the left count is always the rounded share; the count is then the position inside the half. Each level adds at
// most 1/2 to the distance from the share, so it stays below (1 + log2(sources)) / 2.
// The node of leaves [begin, end) is number i; its halves are numbers i + 1 and i + (middle - begin).
void append_shares(std::vector<uint64_t>& shares, const double* begin, const double* end) {
  if (end - begin < 2) return;
  const double* middle = begin + (end - begin) / 2;
  const double left = std::accumulate(begin, middle, 0.0), right = std::accumulate(middle, end, 0.0);
  const double both = left + right;  // 0: no sample ever comes here
  shares.push_back(both > 0 ? static_cast<uint64_t>(std::ldexp(left / both, kShareBits)) : 0);
  append_shares(shares, begin, middle);
  append_shares(shares, middle, end);
}

void add_taken(std::vector<int64_t>& taken, const uint64_t* node, size_t begin, size_t end, int64_t count) {
  if (end - begin == 1) {
    taken[begin] += count;
    return;
  }
  const size_t middle = begin + (end - begin) / 2;
  const int64_t left = share_of(count, *node);
  add_taken(taken, node + 1, begin, middle, left);
  add_taken(taken, node + (middle - begin), middle, end, count - left);
}

void check_weights(const std::vector<double>& weights) {
  for (size_t i = 0; i < weights.size(); ++i)
    check<ConfigError>(std::isfinite(weights[i]) && weights[i] >= 0, "weight ", i, " of the mixture is ", weights[i]);
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  check<ConfigError>(total > 0 && std::isfinite(total), "the weights of the mixture sum to ", total);
}

}  // namespace

Mixture::Mixture(std::vector<MixtureInterval> intervals) {
  check<ConfigError>(!intervals.empty() && intervals.front().first == 0, "the mixture has no weights at its begin");
  for (MixtureInterval& next : intervals) {
    check_weights(next.weights);
    Interval interval{next.first, std::move(next.weights), {}, std::vector<int64_t>(num_sources(), 0)};
    if (!intervals_.empty()) {
      check<ConfigError>(interval.weights.size() == intervals_.back().weights.size(), interval.weights.size(),
                         " weights for ", num_sources(), " sources of the mixture");
      check<ConfigError>(interval.first > intervals_.back().first, "the weights of the mixture change at sample ",
                         interval.first, " after sample ", intervals_.back().first);
      if (interval.weights == intervals_.back().weights) continue;
      interval.taken = taken(interval.first);
    } else {
      interval.taken.resize(interval.weights.size());
    }
    append_shares(interval.shares, interval.weights.data(), interval.weights.data() + interval.weights.size());
    intervals_.push_back(std::move(interval));
  }
}

int64_t Mixture::num_sources() const {
  return intervals_.empty() ? 0 : static_cast<int64_t>(intervals_.front().weights.size());
}

bool Mixture::uses(int64_t source) const {
  return std::any_of(intervals_.begin(), intervals_.end(), [&](const Interval& i) { return i.weights[source] > 0; });
}

const Mixture::Interval& Mixture::interval_of(int64_t position) const {
  assert(position >= 0 && !intervals_.empty());
  const auto behind = std::upper_bound(intervals_.begin(), intervals_.end(), position,
                                       [](int64_t at, const Interval& i) { return at < i.first; });
  return *(behind - 1);
}

MixturePick Mixture::pick(int64_t position) const {
  const Interval& interval = interval_of(position);
  int64_t at = position - interval.first;
  size_t begin = 0, end = interval.weights.size();
  const uint64_t* node = interval.shares.data();
  while (end - begin > 1) {
    const size_t middle = begin + (end - begin) / 2;
    const int64_t before = share_of(at, *node), after = share_of(at + 1, *node);
    if (after > before) {
      at = before;
      end = middle;
      node += 1;
    } else {
      at -= before;
      node += middle - begin;
      begin = middle;
    }
  }
  return {static_cast<int64_t>(begin), interval.taken[begin] + at};
}

std::vector<int64_t> Mixture::taken(int64_t position) const {
  if (position == 0) return std::vector<int64_t>(num_sources(), 0);
  const Interval& interval = interval_of(position - 1);
  std::vector<int64_t> counts = interval.taken;
  add_taken(counts, interval.shares.data(), 0, counts.size(), position - interval.first);
  return counts;
}

bool Mixture::is_same_before(const Mixture& other, int64_t position) const {
  const auto begins_before = [&](const Interval& i) { return i.first < position; };
  const auto count = std::count_if(intervals_.begin(), intervals_.end(), begins_before);
  return count == std::count_if(other.intervals_.begin(), other.intervals_.end(), begins_before) &&
         std::equal(intervals_.begin(), intervals_.begin() + count, other.intervals_.begin(),
                    [](const Interval& a, const Interval& b) { return a.first == b.first && a.weights == b.weights; });
}

}  // namespace braid
