#pragma once

#include <cstdint>

namespace braid::cpu {

// c (M, N) = alpha op(a) op(b) + beta c on one thread, row-major with leading dimensions; M, N or K may be 0.
// Made for calls from inside OpenMP regions: parallelism is the caller's, over tiles of fixed size, so results do not
// depend on the thread count.
struct GemmShape {
  int64_t m, n, k;
};
template <class T>
struct GemmMatrix {
  const T* data;
  int64_t stride;  // elements between rows as stored
  bool transposed = false;
};
void gemm(GemmShape shape, float alpha, GemmMatrix<float> a, GemmMatrix<float> b, float beta, float* c, int64_t stride);
void gemm(GemmShape shape, double alpha, GemmMatrix<double> a, GemmMatrix<double> b, double beta, double* c,
          int64_t stride);

}  // namespace braid::cpu
