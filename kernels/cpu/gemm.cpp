#include "kernels/cpu/gemm.h"

#include <cblas.h>

namespace braid::cpu {
namespace {

// OpenBLAS's own threads would fight with ours and make results depend on their number.
void use_one_blas_thread() {
  static const bool done = (openblas_set_num_threads(1), true);
  (void)done;
}

CBLAS_TRANSPOSE flag(bool transposed) { return transposed ? CblasTrans : CblasNoTrans; }

template <class T>
bool nothing_to_multiply(GemmShape s, T beta, T* c, int64_t stride) {
  if (s.m == 0 || s.n == 0) return true;
  if (s.k > 0) return false;
  for (int64_t i = 0; i < s.m; ++i)
    for (int64_t j = 0; j < s.n; ++j) c[i * stride + j] = beta == 0 ? T(0) : beta * c[i * stride + j];
  return true;
}

}  // namespace

void gemm(GemmShape s, float alpha, GemmMatrix<float> a, GemmMatrix<float> b, float beta, float* c, int64_t stride) {
  if (nothing_to_multiply(s, beta, c, stride)) return;
  use_one_blas_thread();
  cblas_sgemm(CblasRowMajor, flag(a.transposed), flag(b.transposed), s.m, s.n, s.k, alpha, a.data, a.stride, b.data,
              b.stride, beta, c, stride);
}

void gemm(GemmShape s, double alpha, GemmMatrix<double> a, GemmMatrix<double> b, double beta, double* c,
          int64_t stride) {
  if (nothing_to_multiply(s, beta, c, stride)) return;
  use_one_blas_thread();
  cblas_dgemm(CblasRowMajor, flag(a.transposed), flag(b.transposed), s.m, s.n, s.k, alpha, a.data, a.stride, b.data,
              b.stride, beta, c, stride);
}

}  // namespace braid::cpu
