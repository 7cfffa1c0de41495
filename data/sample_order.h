#pragma once

#include <cstdint>

namespace braid {

// A permutation of [0, size) that is a pure function of its key: a Feistel network over the next power of four, walked
// until it lands inside. Nothing to store, nothing to advance.
//   shuffled_index(i, ...) for i = 0 .. size - 1 yields every value once.
int64_t shuffled_index(int64_t index, int64_t size, uint64_t seed, uint64_t epoch);

}  // namespace braid
