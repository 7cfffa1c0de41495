#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <experimental/simd>
#include <utility>

#include "kernels/cpu/gemm.h"

// Products whose sums stay in registers, for any vector width and for fp32 and fp64: what libraries do badly (products
// too small to earn the packing of both factors and the call itself) or not at all (oneDNN has no fp64).
namespace braid::cpu {

inline constexpr int kVectorBytes = std::experimental::native_simd<float>::size() * sizeof(float);
template <class T>
inline constexpr int kWidth = kVectorBytes / sizeof(T);  // elements of a vector

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vector = typename VectorOf<T>::type;

template <class T>
Vector<T> load(const T* from) {
  Vector<T> v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
template <class T>
void store(T* to, Vector<T> v) {
  std::memcpy(to, &v, sizeof v);
}

// to (R, R) = from (R, R) transposed, R = kWidth. One round of zips rotates the bits of (row, column) by one; after
// log2(R) rounds they have changed places.
template <class T, size_t... I>
void transpose_square(T* to, int64_t to_stride, const T* from, int64_t stride, std::index_sequence<I...>) {
  constexpr int R = kWidth<T>;
  Vector<T> rows[R], zipped[R];
  for (int j = 0; j < R; ++j) rows[j] = load(from + j * stride);
  for (int round = 1; round < R; round *= 2) {
    for (int j = 0; j < R / 2; ++j) {
      zipped[2 * j] = __builtin_shufflevector(rows[j], rows[j + R / 2], int(I % 2 * R + I / 2)...);
      zipped[2 * j + 1] = __builtin_shufflevector(rows[j], rows[j + R / 2], int(I % 2 * R + (I + R) / 2)...);
    }
    for (int j = 0; j < R; ++j) rows[j] = zipped[j];
  }
  for (int j = 0; j < R; ++j) store(to + j * to_stride, rows[j]);
}

// The sums of a tile of the output: kRows rows, kVectors vectors of columns.
template <class T>
struct RegisterGemm {
  // 32 registers where vectors have 64 bytes, 16 where they have less: most hold sums, which must be enough to hide the
  // latency of a multiply-add.
  static constexpr int kRows = kVectorBytes == 64 ? 8 : 6, kVectors = 2;
  static constexpr int64_t kPanel = kVectors * kWidth<T>;  // columns of the output that are formed together
  static constexpr int64_t kDepth = 1024 / sizeof(T);      // a panel of b of so many rows fits into the L1 cache

  // c (kR, n) = alpha a b + beta c over `depth` rows of b, a panel of kV vectors of which n columns count
  template <int kR, int kV, bool kTransposedA>
  static void tile(int64_t depth, int64_t n, T alpha, const T* a, int64_t a_stride, const T* b, int64_t b_stride,
                   T beta, T* c, int64_t stride) {
    Vector<T> sum[kR][kV];
    for (int r = 0; r < kR; ++r)
      for (int v = 0; v < kV; ++v) sum[r][v] = Vector<T>{};
    for (int64_t k = 0; k < depth; ++k) {
      Vector<T> b_row[kV];
      for (int v = 0; v < kV; ++v) b_row[v] = load(b + k * b_stride + v * kWidth<T>);
      for (int r = 0; r < kR; ++r) {
        const T x = kTransposedA ? a[k * a_stride + r] : a[r * a_stride + k];
        for (int v = 0; v < kV; ++v) sum[r][v] += x * b_row[v];
      }
    }
    if (n == kV * kWidth<T>) {
      for (int r = 0; r < kR; ++r) {
        for (int v = 0; v < kV; ++v) {
          T* to = c + r * stride + v * kWidth<T>;
          store<T>(to, beta == 0 ? alpha * sum[r][v] : alpha * sum[r][v] + beta * load(to));
        }
      }
      return;
    }
    for (int r = 0; r < kR; ++r) {
      T row[kV * kWidth<T>];
      for (int v = 0; v < kV; ++v) store<T>(row + v * kWidth<T>, sum[r][v]);
      for (int64_t j = 0; j < n; ++j) {
        T& to = c[r * stride + j];
        to = beta == 0 ? alpha * row[j] : alpha * row[j] + beta * to;
      }
    }
  }

  // The same for `rows` <= kR rows.
  template <int kR, int kV, bool kTransposedA, class... Arguments>
  static void some_rows(int64_t rows, Arguments... arguments) {
    if constexpr (kR > 0) {
      if (rows == kR) tile<kR, kV, kTransposedA>(arguments...);
      else some_rows<kR - 1, kV, kTransposedA>(rows, arguments...);
    }
  }

  template <int kV, bool kTransposedA>
  static void panel(int64_t M, int64_t depth, int64_t n, T alpha, const T* a, int64_t a_stride, const T* b,
                    int64_t b_stride, T beta, T* c, int64_t stride) {
    for (int64_t m = 0; m < M; m += kRows)
      some_rows<kRows, kV, kTransposedA>(std::min<int64_t>(kRows, M - m), depth, n, alpha,
                                         a + (kTransposedA ? m : m * a_stride), a_stride, b, b_stride, beta,
                                         c + m * stride, stride);
  }

  // to (depth, width) = the first n columns of op(b), zeros behind them
  static void pack(T* to, int64_t width, int64_t depth, int64_t n, GemmMatrix<T> b) {
    if (!b.transposed) {
      for (int64_t k = 0; k < depth; ++k) {
        std::copy_n(b.data + k * b.stride, n, to + k * width);
        std::fill(to + k * width + n, to + (k + 1) * width, T(0));
      }
      return;
    }
    constexpr int R = kWidth<T>;
    for (int64_t j = 0; j < width; j += R) {
      const int64_t columns = std::clamp<int64_t>(n - j, 0, R);
      int64_t k = 0;
      for (; columns == R && k + R <= depth; k += R)
        transpose_square(to + k * width + j, width, b.data + j * b.stride + k, b.stride, std::make_index_sequence<R>());
      for (; k < depth; ++k) {
        for (int64_t i = 0; i < columns; ++i) to[k * width + j + i] = b.data[(j + i) * b.stride + k];
        std::fill_n(to + k * width + j + columns, R - columns, T(0));
      }
    }
  }

  // c = alpha op(a) op(b) + beta c
  static void run(GemmShape shape, T alpha, GemmMatrix<T> a, GemmMatrix<T> b, T beta, T* c, int64_t stride) {
    alignas(kVectorBytes) T packed[kDepth * kPanel];
    for (int64_t k = 0; k < shape.k; k += kDepth) {
      const int64_t depth = std::min(kDepth, shape.k - k);
      const T beta_k = k == 0 ? beta : T(1);
      const T* a_k = a.data + (a.transposed ? k * a.stride : k);
      for (int64_t j = 0; j < shape.n; j += kPanel) {
        const int64_t n = std::min(kPanel, shape.n - j), width = n <= kWidth<T> ? kWidth<T> : kPanel;
        GemmMatrix<T> b_k = {b.data + (b.transposed ? j * b.stride + k : k * b.stride + j), b.stride, b.transposed};
        if (b.transposed || n < width) {
          pack(packed, width, depth, n, b_k);
          b_k = {packed, width};
        }
        auto form = [&]<int kV, bool kTransposedA> {
          panel<kV, kTransposedA>(shape.m, depth, n, alpha, a_k, a.stride, b_k.data, b_k.stride, beta_k, c + j, stride);
        };
        const bool narrow = width < kPanel;
        if (a.transposed) narrow ? form.template operator()<1, true>() : form.template operator()<kVectors, true>();
        else narrow ? form.template operator()<1, false>() : form.template operator()<kVectors, false>();
      }
    }
  }
};

}  // namespace braid::cpu
