#include "kernels/cpu/gemm.h"

#include "kernels/cpu/product_library.h"
#include "kernels/cpu/register_gemm.h"

namespace braid::cpu {
namespace {

// From so many multiply-adds on the library is faster than sums in registers (kernels/README.md).
constexpr int64_t kLibraryProduct = int64_t{1} << 21;

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
  if (s.m * s.n * s.k >= kLibraryProduct) return library::gemm(s, alpha, a, b, beta, c, stride);
  RegisterGemm<float>::run(s, alpha, a, b, beta, c, stride);
}

void gemm(GemmShape s, double alpha, GemmMatrix<double> a, GemmMatrix<double> b, double beta, double* c,
          int64_t stride) {
  if (nothing_to_multiply(s, beta, c, stride)) return;
  RegisterGemm<double>::run(s, alpha, a, b, beta, c, stride);
}

}  // namespace braid::cpu
