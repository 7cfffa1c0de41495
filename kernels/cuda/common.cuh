#pragma once

#include <cuda_bf16.h>

#include <cstdint>
#include <type_traits>

#include "kernels/core/tensor.h"
#include "kernels/cuda/gpu.h"

// What every kernel file uses: types, reductions, 16-byte vectors, launch arithmetic.
namespace braid::cuda {

using bf16 = __nv_bfloat16;

inline constexpr int kWarpSize = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Calls body.template operator()<float>() or <bf16>() for the dtype of an activation. On the GPU statistics and sums
// are fp32 for both.
template <class Body>
void dispatch_activation(const char* name, const Tensor& tensor, Body&& body) {
  switch (tensor.dtype()) {
    case DType::kF32: return body.template operator()<float>();
    case DType::kBF16: return body.template operator()<bf16>();
    default: throw DTypeError(concat(name, ": expected F32 or BF16 on the GPU, got ", name_of(tensor.dtype())));
  }
}

// The typed pointer of a tensor in device memory.
template <class T>
T* pointer(Tensor& tensor) {
  return static_cast<T*>(tensor.raw());
}
template <class T>
const T* pointer(const Tensor& tensor) {
  return static_cast<const T*>(tensor.raw());
}

__device__ __forceinline__ float square(float x) { return x * x; }
// Powers and reciprocals by the one instruction that approximates them, to 2 ulp. Those of CUDA's headers guard what
// would be denormal with three instructions more; here it becomes 0.
inline constexpr float kLog2E = 1.4426950408889634f;
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float exp_fast(float x) { return exp2_fast(kLog2E * x); }
__device__ __forceinline__ float reciprocal_fast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// An exact division would take as long as all the rest of most kernels that need it.
__device__ __forceinline__ float sigmoid(float x) { return reciprocal_fast(1.0f + exp_fast(-x)); }

// Sum over the lanes of a warp, in a fixed order; every lane gets it.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kAllLanes, x, offset);
  return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, offset));
  return x;
}

// Consecutive elements, 16 bytes unless said otherwise: 8 bf16 or 4 floats. Loads and stores need memory aligned to all
// of them.
template <class T, int kBytes = 16>
struct Vec {
  static_assert(kBytes == 8 || kBytes == 16);
  using Word = std::conditional_t<kBytes == 16, uint4, uint2>;
  static constexpr int kSize = kBytes / sizeof(T);
  alignas(kBytes) uint32_t word[kBytes / 4];

  __device__ __forceinline__ static Vec load(const T* from) {
    Vec v;
    *reinterpret_cast<Word*>(&v) = *reinterpret_cast<const Word*>(from);
    return v;
  }
  // In assembly, because a compiler that sees elements of 2 bytes may store them in parts of 4.
  __device__ __forceinline__ void store(T* to) const {
    if constexpr (kBytes == 16)
      asm volatile("st.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(word[0]), "r"(word[1]), "r"(word[2]), "r"(word[3])
                   : "memory");
    else asm volatile("st.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(word[0]), "r"(word[1]) : "memory");
  }
  // A bf16 is the upper half of a float: one instruction, whichever half of a word it is.
  __device__ __forceinline__ float operator[](int i) const {
    if constexpr (sizeof(T) == 4) return __uint_as_float(word[i]);
    else return __uint_as_float(i % 2 == 0 ? word[i / 2] << 16 : word[i / 2] & 0xffff0000u);
  }
  __device__ __forceinline__ void set(int i, float value) { reinterpret_cast<T*>(word)[i] = static_cast<T>(value); }
};

}  // namespace braid::cuda
