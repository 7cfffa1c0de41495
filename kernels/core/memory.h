#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "kernels/core/tensor.h"

namespace braid {

inline constexpr int64_t kMemoryAlignBytes = 256;  // of every block and every tensor in one; what vector loads, TMA and
                                                   // cuBLASLt ask for

inline int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// A block of memory, not initialised, that is freed with its last owner; null if there is none left. GPU memory is that
// of the calling thread's current device.
std::shared_ptr<std::byte> allocate_memory(Device device, int64_t bytes);
// Done when it returns.
void zero_memory(Device device, std::byte* block, int64_t bytes);

// Of the calling thread's current GPU, all processes on it counted.
struct GpuMemory {
  int64_t free_bytes = 0, total_bytes = 0;
};
GpuMemory gpu_memory();

}  // namespace braid
