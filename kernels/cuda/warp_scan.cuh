#pragma once

#include "kernels/cuda/common.cuh"

namespace braid::cuda {

// Sum of this and all lower lanes of a warp; all 32 call it.
__device__ __forceinline__ int32_t inclusive_scan(int32_t value) {
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    const int32_t below = __shfl_up_sync(kAllLanes, value, offset);
    if (lane >= offset) value += below;
  }
  return value;
}

}  // namespace braid::cuda
