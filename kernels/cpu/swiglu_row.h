#pragma once

#include <cstdint>

#include "kernels/cpu/ordered_sum.h"
#include "kernels/cpu/vector_math.h"

namespace braid::cpu {

// One row of SwiGLU, shared by swiglu and experts:  h = scale * silu(a) * b
template <class T>
void swiglu_row(T* h, const T* a, const T* b, T scale, int64_t F) {
#pragma omp simd
  for (int64_t f = 0; f < F; ++f) h[f] = scale * silu(a[f]) * b[f];
}

enum class RecomputeH { kNo, kYes };

// The elements [begin, end) of what follows.
template <RecomputeH kRecompute, class T>
T swiglu_backward(T* d_a, T* d_b, T* h, const T* d_h, const T* a, const T* b, T scale, int64_t begin, int64_t end) {
  T d_scale = 0;
#pragma omp simd reduction(+ : d_scale)
  for (int64_t f = begin; f < end; ++f) {
    const T s = sigmoid(a[f]), act = a[f] * s, d_product = scale * d_h[f];
    d_scale += d_h[f] * act * b[f];
    d_a[f] = d_product * b[f] * (s + act * (1 - s));
    d_b[f] = d_product * act;
    if constexpr (kRecompute == RecomputeH::kYes) h[f] = scale * act * b[f];
  }
  return d_scale;
}

// Overwrites d_a and d_b, and if `h` is wanted writes it once more; returns the gradient by scale.
// d_a or h may be the same memory as d_h.
template <RecomputeH kRecompute, class T>
T swiglu_row_backward(T* d_a, T* d_b, T* h, const T* d_h, const T* a, const T* b, T scale, int64_t F) {
  return static_cast<T>(sum_in_blocks(F, [=](int64_t begin, int64_t end) {
    return swiglu_backward<kRecompute>(d_a, d_b, h, d_h, a, b, scale, begin, end);
  }));
}

}  // namespace braid::cpu
