#pragma once

#include <algorithm>
#include <cstdint>

namespace braid {

// What an ordered reduction in host memory takes: the same block of every rank's data.
inline constexpr int64_t kReductionBlockBytes = int64_t{512} << 10;  // of each rank's data that are summed at a time
inline constexpr int64_t kSmallReductionBytes = int64_t{16} << 10;   // up to here fewer messages beat fewer bytes

inline int64_t reduction_scratch_bytes(int size, int64_t shard_bytes) {
  return size * std::min(kReductionBlockBytes, shard_bytes);
}
inline int64_t all_reduce_scratch_bytes(int size, int64_t numel, int64_t element_bytes) {
  if (numel * element_bytes <= kSmallReductionBytes) return size * numel * element_bytes;
  return reduction_scratch_bytes(size, (numel + size - 1) / size * element_bytes);
}

}  // namespace braid
