#include "data/sample_order.h"

#include <cassert>
#include <utility>

#include "kernels/core/philox.h"

namespace braid {

int64_t shuffled_index(int64_t index, int64_t size, uint64_t seed, uint64_t epoch) {
  assert(0 <= index && index < size);
  // Keeps this use of the seed apart from the others (initial weights).
  constexpr uint64_t kUse = 0x6f726465722d3031;
  constexpr uint64_t kRounds = 6;  // four make a Feistel network pseudo-random; small halves want more
  int half_bits = 0;
  while ((uint64_t{1} << (2 * half_bits)) < static_cast<uint64_t>(size)) ++half_bits;
  const uint64_t mask = (uint64_t{1} << half_bits) - 1;
  auto x = static_cast<uint64_t>(index);
  do {
    uint64_t left = x >> half_bits, right = x & mask;
    for (uint64_t round = 0; round < kRounds; ++round) {
      left ^= philox(seed ^ kUse, epoch, round << 32 | right)[0] & mask;
      std::swap(left, right);
    }
    x = left << half_bits | right;
  } while (x >= static_cast<uint64_t>(size));
  return static_cast<int64_t>(x);
}

}  // namespace braid
