#include "data/mixture.h"

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

}  // namespace

// The sources are the leaves of a balanced binary tree. A node hands each of its samples to its left or right half so
// that the left count is always the rounded share; the count is then the position inside the half. Each level adds at
// most 1/2 to the distance from the share, so it stays below (1 + log2(sources)) / 2.
MixturePick mixture_pick(int64_t position, const std::vector<double>& weights) {
  assert(position >= 0);
  for (size_t i = 0; i < weights.size(); ++i)
    check<ConfigError>(std::isfinite(weights[i]) && weights[i] >= 0, "weight ", i, " of the mixture is ", weights[i]);
  auto begin = weights.begin(), end = weights.end();
  double total = std::accumulate(begin, end, 0.0);
  check<ConfigError>(total > 0 && std::isfinite(total), "the weights of the mixture sum to ", total);
  while (end - begin > 1) {
    const auto middle = begin + (end - begin) / 2;
    const double left = std::accumulate(begin, middle, 0.0), right = std::accumulate(middle, end, 0.0);
    const auto share = static_cast<uint64_t>(std::ldexp(left / (left + right), kShareBits));
    const int64_t before = share_of(position, share), after = share_of(position + 1, share);
    if (after > before) {
      position = before;
      end = middle;
    } else {
      position -= before;
      begin = middle;
    }
  }
  return {begin - weights.begin(), position};
}

}  // namespace braid
