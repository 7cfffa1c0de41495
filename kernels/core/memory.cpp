#include "kernels/core/memory.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "kernels/build_config.h"

namespace braid {

namespace cuda {
void* allocate(int64_t bytes);  // null if there is not enough
void release(void* block);
void zero(void* block, int64_t bytes);
decltype(braid::gpu_memory) gpu_memory;
}  // namespace cuda

std::shared_ptr<std::byte> allocate_memory(Device device, int64_t bytes) {
  bytes = round_up(bytes, kMemoryAlignBytes);
  if (device == Device::kCuda) {
    if constexpr (kWithCuda) {
      void* block = cuda::allocate(bytes);
      return block ? std::shared_ptr<std::byte>(static_cast<std::byte*>(block), cuda::release) : nullptr;
    }
    throw EnvironmentError("this build of braid has no CUDA operators");
  }
  void* block = std::aligned_alloc(kMemoryAlignBytes, static_cast<size_t>(bytes));
  return block ? std::shared_ptr<std::byte>(static_cast<std::byte*>(block), std::free) : nullptr;
}

void zero_memory(Device device, std::byte* block, int64_t bytes) {
  if constexpr (kWithCuda) {
    if (device == Device::kCuda) return cuda::zero(block, bytes);
  }
  constexpr int64_t kPart = int64_t{2} << 20;
#pragma omp parallel for schedule(static)  // the first touch of a page makes it, which takes longer than to fill it
  for (int64_t at = 0; at < bytes; at += kPart)
    std::memset(block + at, 0, static_cast<size_t>(std::min(kPart, bytes - at)));
}

GpuMemory gpu_memory() {
  if constexpr (kWithCuda) return cuda::gpu_memory();
  throw EnvironmentError("this build of braid has no CUDA operators");
}

}  // namespace braid
