#pragma once

#include <algorithm>
#include <bit>

#include "kernels/core/float_types.h"
#include "kernels/core/split_float.h"

namespace braid::cpu {

inline void split_row(BFloat16* weight, int16_t* low, const float* master, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const SplitFloat split = split_float(std::bit_cast<uint32_t>(master[i]));
    weight[i].bits = split.high;
    low[i] = split.low;
  }
}
inline void join_row(float* master, const BFloat16* weight, const int16_t* low, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) master[i] = std::bit_cast<float>(join_float({weight[i].bits, low[i]}));
}

// Calls body(T* master, begin, end) with elements [begin, end) of the masters, on all threads, and keeps what it makes
// of them: in place where the weights are their own masters, else a block at a time.
template <class T, class Body>
void update_masters(Tensor weight, Tensor low, int64_t begin, int64_t end, Body&& body) {
  constexpr int64_t kBlock = 2048;
  if (!low.defined()) return body(weight.data<T>() + begin, begin, end);
  if constexpr (sizeof(T) == sizeof(float)) {
    auto* low_bits = static_cast<int16_t*>(low.raw());
    for (int64_t first = begin; first < end; first += kBlock) {
      const int64_t n = std::min(kBlock, end - first);
      float master[kBlock];
      BFloat16* const high = weight.data<BFloat16>() + first;
      join_row(master, high, low_bits + first, n);
      body(master, first, first + n);
      split_row(high, low_bits + first, master, n);
    }
  }
}

}  // namespace braid::cpu
