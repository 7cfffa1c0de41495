#pragma once

#include <algorithm>
#include <initializer_list>

#include "kernels/core/split_float.h"
#include "kernels/cuda/common.cuh"

namespace braid::cuda {

// kCount consecutive elements in one access, or two where they are longer than 16 bytes.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount < 16 ? sizeof(T) * kCount : 16) Pack {
  T element[kCount];
  __device__ __forceinline__ static Pack load(const T* from) { return *reinterpret_cast<const Pack*>(from); }
  __device__ __forceinline__ void store(T* to) const { *reinterpret_cast<Pack*>(to) = *this; }
  __device__ __forceinline__ float operator[](int i) const { return static_cast<float>(element[i]); }
  __device__ __forceinline__ void set(int i, float value) { element[i] = static_cast<T>(value); }
};

// Calls body.template operator()<kCount>() if rows of C elements of these tensors can be read so many at a time, or
// else <1>.
template <int kCount = 4, class Body>
void dispatch_count(int64_t C, std::initializer_list<const Tensor*> tensors, Body&& body) {
  bool aligned = C % kCount == 0;
  for (const Tensor* t : tensors)
    aligned &= reinterpret_cast<uintptr_t>(t->raw()) % std::min<size_t>(16, kCount * size_of(t->dtype())) == 0;
  if (aligned) return body.template operator()<kCount>();
  body.template operator()<1>();
}

__device__ __forceinline__ float join(bf16 weight, int16_t low) {
  return __uint_as_float(join_float({__bfloat16_as_ushort(weight), low}));
}
__device__ __forceinline__ void split(bf16& weight, int16_t& low, float master) {
  const SplitFloat both = split_float(__float_as_uint(master));
  weight = __ushort_as_bfloat16(both.high);
  low = both.low;
}

// The masters of kCount consecutive weights of a thread, from element `at` on: floats that are their own, or bf16
// beside their low bits.
template <class Weight, int kCount>
struct Masters {
  static constexpr bool kSplit = sizeof(Weight) == 2;
  float master[kCount];

  __device__ __forceinline__ Masters(const Weight* weight, const int16_t* low, int64_t at) {
    const auto high = Pack<Weight, kCount>::load(weight + at);
    if constexpr (kSplit) {
      const auto rest = Pack<int16_t, kCount>::load(low + at);
#pragma unroll
      for (int k = 0; k < kCount; ++k) master[k] = join(high.element[k], rest.element[k]);
    } else {
#pragma unroll
      for (int k = 0; k < kCount; ++k) master[k] = high.element[k];
    }
  }
  __device__ __forceinline__ void store(Weight* weight, int16_t* low, int64_t at) const {
    Pack<Weight, kCount> high;
    if constexpr (kSplit) {
      Pack<int16_t, kCount> rest;
#pragma unroll
      for (int k = 0; k < kCount; ++k) split(high.element[k], rest.element[k], master[k]);
      rest.store(low + at);
    } else {
#pragma unroll
      for (int k = 0; k < kCount; ++k) high.element[k] = master[k];
    }
    high.store(weight + at);
  }
};

}  // namespace braid::cuda
