#include "kernels/matmul.h"

#include <algorithm>

#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/gemm.h"

namespace braid::cpu {
namespace {

// One task computes one such tile of the output. From this size on a call runs within a few percent of one large
// product, and 2048 tokens still give 16 tasks to the narrowest layers.
constexpr int64_t kTileM = 128, kTileN = 256;
// An output with fewer tiles than this (a weight gradient) has its sum over K cut as well, into pieces at least this
// long, so that a piece costs far more than adding it up.
constexpr int64_t kMinTasks = 16, kMinPieceK = 512;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class T>
GemmMatrix<T> from(GemmMatrix<T> matrix, int64_t row, int64_t column) {
  matrix.data += matrix.transposed ? column * matrix.stride + row : row * matrix.stride + column;
  return matrix;
}

template <class T>
void multiply(Context& ctx, T* c, GemmShape shape, GemmMatrix<T> a, GemmMatrix<T> b, T beta) {
  const int64_t M = shape.m, N = shape.n, K = shape.k;
  const int64_t tiles = ceil_div(M, kTileM) * ceil_div(N, kTileN);
  const int64_t pieces = std::clamp<int64_t>(K / kMinPieceK, 1, ceil_div(kMinTasks, tiles));
  const int64_t piece_k = ceil_div(K, pieces);
  Scratch scratch(ctx);
  T* later_pieces = scratch.array<T>((pieces - 1) * M * N);
  if (ctx.counts_only()) return;
#pragma omp parallel for collapse(3) schedule(dynamic) if (tiles * pieces > 1)
  for (int64_t piece = 0; piece < pieces; ++piece) {
    for (int64_t m = 0; m < M; m += kTileM) {
      for (int64_t n = 0; n < N; n += kTileN) {
        const int64_t k = piece * piece_k;
        T* sum = piece == 0 ? c : later_pieces + (piece - 1) * M * N;
        gemm({std::min(kTileM, M - m), std::min(kTileN, N - n), std::min(piece_k, K - k)}, T(1), from(a, m, k),
             from(b, k, n), piece == 0 ? beta : T(0), sum + m * N + n, N);
      }
    }
  }
  if (pieces == 1) return;
#pragma omp parallel for schedule(static) if (M > 1)
  for (int64_t m = 0; m < M; ++m) {
    for (int64_t piece = 1; piece < pieces; ++piece) {
      const T* sum = later_pieces + (piece - 1) * M * N;
#pragma omp simd
      for (int64_t i = m * N; i < (m + 1) * N; ++i) c[i] += sum[i];
    }
  }
}

}  // namespace

void matmul(Context& ctx, Tensor c, const Tensor& a, Transpose transpose_a, const Tensor& b, Transpose transpose_b,
            Accumulate accumulate) {
  const int64_t M = c.dim(0), N = c.dim(1), K = transpose_a == Transpose::kNo ? a.dim(1) : a.dim(0);
  dispatch_float("c", c, [&]<class T> {
    multiply<T>(ctx, c.data<T>(), {M, N, K}, {a.data<T>(), a.dim(1), transpose_a == Transpose::kYes},
                {b.data<T>(), b.dim(1), transpose_b == Transpose::kYes}, accumulate == Accumulate::kYes ? T(1) : T(0));
  });
}

}  // namespace braid::cpu
