#pragma once

#include <array>
#include <cstdint>

namespace braid {

// Philox 4x32-10: 128 random bits as a pure function of (key, counter). Nothing to save, nothing to advance.
// Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
std::array<uint32_t, 4> philox(uint64_t key, uint64_t counter_high, uint64_t counter_low);

}  // namespace braid
