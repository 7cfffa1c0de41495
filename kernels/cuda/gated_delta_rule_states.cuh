#pragma once

#include "kernels/cuda/common.cuh"

namespace braid::cuda {

// States (B, Hv, Dk, Dv), or their gradients, at one end of the rows; null: none are given, or asked for. They belong
// to the documents that begin or end with a row.
struct RowStates {
  float* data;
  int row_tokens;

  __device__ __forceinline__ bool has(int64_t border) const { return data && border % row_tokens == 0; }
  // Of the row that begins, or ends, at this token.
  __device__ __forceinline__ float* before(int64_t begin, int head, int Hv, int64_t state_size) const {
    return has(begin) ? data + (begin / row_tokens * Hv + head) * state_size : nullptr;
  }
  __device__ __forceinline__ float* behind(int64_t end, int head, int Hv, int64_t state_size) const {
    return has(end) ? data + ((end / row_tokens - 1) * Hv + head) * state_size : nullptr;
  }
};

}  // namespace braid::cuda
