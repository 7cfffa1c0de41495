#pragma once

#include <initializer_list>

#include "kernels/cuda/common.cuh"

// Kernels that pass over rows are written once, for any width of access: `V` is Vec<T>, 16 bytes, or One<T>, a single
// element, for rows that do not allow it.
namespace braid::cuda {

template <class T>
struct One {
  static constexpr int kSize = 1;
  T element;

  __device__ __forceinline__ static One load(const T* from) { return {*from}; }
  __device__ __forceinline__ void store(T* to) const { *to = element; }
  __device__ __forceinline__ float operator[](int) const { return static_cast<float>(element); }
  __device__ __forceinline__ void set(int, float value) { element = static_cast<T>(value); }
};

// kCount consecutive floats beside the elements of a V: weights, sums. From a multiple of kCount in aligned memory.
template <int kCount>
struct Floats {
  static constexpr int kSize = kCount;
  float element[kCount];

  __device__ __forceinline__ static Floats load(const float* from) {
    Floats f;
    if constexpr (kCount % 4 == 0) {
#pragma unroll
      for (int i = 0; i < kCount; i += 4) {
        const float4 four = *reinterpret_cast<const float4*>(from + i);
        f.element[i] = four.x, f.element[i + 1] = four.y, f.element[i + 2] = four.z, f.element[i + 3] = four.w;
      }
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) f.element[i] = from[i];
    }
    return f;
  }
  __device__ __forceinline__ void store(float* to) const {
    if constexpr (kCount % 4 == 0) {
#pragma unroll
      for (int i = 0; i < kCount; i += 4)
        *reinterpret_cast<float4*>(to + i) = make_float4(element[i], element[i + 1], element[i + 2], element[i + 3]);
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) to[i] = element[i];
    }
  }
  __device__ __forceinline__ float operator[](int i) const { return element[i]; }
  __device__ __forceinline__ float& operator[](int i) { return element[i]; }
  __device__ __forceinline__ void set(int i, float value) { element[i] = value; }
};

// Calls body.template operator()<Vec<T>>() if rows that begin at these addresses and multiples of `row_elements` from
// them can be read 16 bytes at a time, or else <One<T>>.
template <class T, class Body>
void dispatch_width(int64_t row_elements, std::initializer_list<const void*> addresses, Body&& body) {
  bool aligned = row_elements % Vec<T>::kSize == 0;
  for (const void* address : addresses) aligned &= reinterpret_cast<uintptr_t>(address) % 16 == 0;
  if (aligned) return body.template operator()<Vec<T>>();
  body.template operator()<One<T>>();
}

}  // namespace braid::cuda
