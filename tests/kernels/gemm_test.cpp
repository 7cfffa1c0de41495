#include "kernels/cpu/gemm.h"

#include <omp.h>

#include <cmath>
#include <vector>

#include "kernels/cpu_products.h"
#include "tests/testing.h"

namespace braid {
namespace {

using cpu::GemmMatrix;
using cpu::GemmShape;

template <class T>
std::vector<T> random_values(int64_t count, uint64_t seed) {
  const Tensor t = testing::random_normal({count}, dtype_of<T>(), seed);
  return {t.data<T>(), t.data<T>() + count};
}

// A matrix op(x) (rows, columns) whose stored rows lie `gap` elements further apart than they are long.
template <class T>
struct Stored {
  Stored(int64_t rows, int64_t columns, bool transposed, int64_t gap, uint64_t seed)
      : stride((transposed ? rows : columns) + gap),
        transposed(transposed),
        values(random_values<T>((transposed ? columns : rows) * stride, seed)) {}
  GemmMatrix<T> matrix() const { return {values.data(), stride, transposed}; }
  double at(int64_t row, int64_t column) const {
    return values[transposed ? column * stride + row : row * stride + column];
  }
  int64_t stride;
  bool transposed;
  std::vector<T> values;
};

template <class T>
void expect_product(GemmShape s, bool transpose_a, bool transpose_b, T alpha, T beta, double tolerance) {
  SCOPED_TRACE(
      concat(s.m, " x ", s.n, " x ", s.k, transpose_a ? " T" : " N", transpose_b ? "T" : "N", ", beta ", beta));
  constexpr int64_t kGap = 3;
  const Stored<T> a(s.m, s.k, transpose_a, kGap, 1), b(s.k, s.n, transpose_b, kGap, 2);
  const int64_t stride = s.n + kGap;
  const std::vector<T> before = random_values<T>(s.m * stride, 3);
  std::vector<T> c = before;
  if (beta == 0)  // what is overwritten is not read
    for (int64_t i = 0; i < s.m; ++i) std::fill_n(c.data() + i * stride, s.n, std::nan(""));
  cpu::gemm(s, alpha, a.matrix(), b.matrix(), beta, c.data(), stride);
  double error = 0, scale = 0;
  for (int64_t i = 0; i < s.m; ++i) {
    for (int64_t j = 0; j < s.n; ++j) {
      double expected = beta * before[i * stride + j], magnitude = std::abs(expected);
      for (int64_t k = 0; k < s.k; ++k) {
        const double term = alpha * a.at(i, k) * b.at(k, j);
        expected += term;
        magnitude += std::abs(term);  // what rounding is in proportion to, also where the sum is nearly zero
      }
      error += (c[i * stride + j] - expected) * (c[i * stride + j] - expected);
      scale += magnitude * magnitude;
    }
    for (int64_t j = s.n; j < stride; ++j) ASSERT_EQ(c[i * stride + j], before[i * stride + j]) << "beyond the row";
  }
  EXPECT_LE(std::sqrt(error), tolerance * std::sqrt(scale) + 1e-300);
}

template <class T>
void expect_products(GemmShape s, double tolerance) {
  for (bool transpose_a : {false, true})
    for (bool transpose_b : {false, true})
      for (T beta : {T(0), T(1), T(-0.5)}) expect_product<T>(s, transpose_a, transpose_b, T(0.75), beta, tolerance);
}

TEST(Gemm, EqualsNaiveSumsWhereEdgesFallBesideRegistersAndVectors) {
  for (int64_t m : {1, 5, 8, 13})
    for (int64_t n : {1, 15, 16, 31, 33, 70})
      for (int64_t k : {1, 16, 37}) expect_products<float>({m, n, k}, 2e-7), expect_products<double>({m, n, k}, 4e-16);
}

TEST(Gemm, EqualsNaiveSumsWhereTheSumIsLong) {
  for (int64_t k : {127, 128, 129, 256, 257, 1025})
    expect_products<float>({9, 34, k}, 2e-7), expect_products<double>({9, 34, k}, 4e-16);
}

TEST(Gemm, EqualsNaiveSumsWhereTheLibraryServes) {
  expect_products<float>({128, 256, 384}, 2e-7);
  expect_products<float>({130, 259, 267}, 2e-7);
}

TEST(Gemm, NothingToSumScalesTheOutput) {
  float c[2] = {3, std::nanf("")};
  cpu::gemm({1, 1, 0}, 1.0f, {c, 1}, {c, 1}, 2.0f, c, 1);
  cpu::gemm({1, 1, 0}, 1.0f, {c, 1}, {c, 1}, 0.0f, c + 1, 1);
  EXPECT_EQ(c[0], 6);
  EXPECT_EQ(c[1], 0);
}

// Alone, in the only thread of a region and in each of several: the same kernels on one thread, so the same bits.
TEST(Gemm, ThreadsDoNotChangeBits) {
  constexpr int kThreads = 8;  // so many that oneDNN, if it had them, would cut the sum over k among them
  for (GemmShape s : {GemmShape{32, 64, 32}, GemmShape{256, 512, 384}, GemmShape{128, 192, 2048}}) {
    const Stored<float> a(s.m, s.k, true, 0, 1), b(s.k, s.n, false, 0, 2);
    auto product = [&] {
      std::vector<float> c(s.m * s.n);
      cpu::gemm(s, 1.0f, a.matrix(), b.matrix(), 0.0f, c.data(), s.n);
      return c;
    };
    const int threads = omp_get_max_threads();
    omp_set_num_threads(1);
    const std::vector<float> expected = product();
    omp_set_num_threads(kThreads);
    EXPECT_EQ(product(), expected);
    EXPECT_EQ(omp_get_max_threads(), kThreads) << "the caller's threads stay as they were";
    std::vector<float> in_threads[kThreads];
#pragma omp parallel num_threads(kThreads)
    in_threads[omp_get_thread_num()] = product();
    for (const auto& c : in_threads) EXPECT_EQ(c, expected);
    omp_set_num_threads(threads);
  }
}

TEST(CpuProducts, TellWhatServesAndHowFast) {
  const CpuProducts products = cpu_products();
  EXPECT_FALSE(products.processor.empty());
  EXPECT_FALSE(products.library.empty());
  EXPECT_FALSE(products.kernel.empty());
  const CpuProductRate rate = measure_cpu_products();
  EXPECT_GT(rate.gflops, 0.1);
  EXPECT_GT(rate.peak_gflops, rate.gflops * 0.5);  // generous: another program may have run beside one of the two
}

}  // namespace
}  // namespace braid
