#include "kernels/matmul.h"

#include "tests/messages.h"
#include "tests/testing.h"

namespace braid {
namespace {

using namespace braid::testing;

constexpr Transpose kBoth[] = {Transpose::kNo, Transpose::kYes};

Shape stored(int64_t rows, int64_t columns, Transpose transpose) {
  return transpose == Transpose::kNo ? Shape{rows, columns} : Shape{columns, rows};
}

// op(t) as rows of doubles
std::vector<double> unpacked(const Tensor& t, int64_t rows, int64_t columns, Transpose transpose) {
  std::vector<double> values(rows * columns);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c)
      values[r * columns + c] = value_at(t, transpose == Transpose::kNo ? r * columns + c : c * rows + r);
  return values;
}

Tensor naive(const Tensor& start, const Tensor& a, Transpose transpose_a, const Tensor& b, Transpose transpose_b) {
  const int64_t M = start.dim(0), N = start.dim(1), K = a.numel() / M;
  const std::vector<double> left = unpacked(a, M, K, transpose_a), right = unpacked(b, K, N, transpose_b);
  Tensor c = converted(start, DType::kF64);
  for (int64_t m = 0; m < M; ++m)
    for (int64_t k = 0; k < K; ++k)
      for (int64_t n = 0; n < N; ++n) c.data<double>()[m * N + n] += left[m * K + k] * right[k * N + n];
  return c;
}

void expect_product(int64_t M, int64_t N, int64_t K, DType dtype, double tolerance) {
  SCOPED_TRACE(concat("M ", M, " N ", N, " K ", K, " ", name_of(dtype)));
  Context ctx = Context::cpu();
  for (Transpose ta : kBoth) {
    for (Transpose tb : kBoth) {
      Tensor a = random_normal(stored(M, K, ta), dtype, 1), b = random_normal(stored(K, N, tb), dtype, 2);
      Tensor c = poisoned({M, N}, dtype);
      matmul(ctx, c, a, ta, b, tb);
      expect_close(c, naive(zeros({M, N}, dtype), a, ta, b, tb), tolerance, "overwritten");
      Tensor sum = random_normal({M, N}, dtype, 3);
      Tensor expected = naive(sum, a, ta, b, tb);
      matmul(ctx, sum, a, ta, b, tb, Accumulate::kYes);
      expect_close(sum, expected, tolerance, "accumulated");
    }
  }
}

TEST(Matmul, EqualsNaiveLoopsForOddSizes) {
  for (int64_t M : {1, 63, 130, 257})
    for (int64_t N : {1, 65, 257})
      for (int64_t K : {1, 65}) expect_product(M, N, K, DType::kF64, 1e-14);
  expect_product(130, 257, 63, DType::kF32, 1e-6);
}

TEST(Matmul, EqualsNaiveLoopsWhenTheSumIsLong) {
  for (int64_t K : {1023, 1024, 1025, 2500}) expect_product(7, 9, K, DType::kF64, 1e-14);
  expect_product(130, 3, 5000, DType::kF64, 1e-14);
  expect_product(7, 9, 2500, DType::kF32, 2e-6);
}

TEST(Matmul, OfNothingIsZero) {
  Context ctx = Context::cpu();
  Tensor c = poisoned({2, 3}, DType::kF32);
  matmul(ctx, c, zeros({2, 0}, DType::kF32), Transpose::kNo, zeros({0, 3}, DType::kF32), Transpose::kNo);
  expect_same_bits(c, zeros({2, 3}, DType::kF32));
  Tensor sum = random_normal({2, 3}, DType::kF32, 1), before = copy_of(sum);
  matmul(ctx, sum, zeros({2, 0}, DType::kF32), Transpose::kNo, zeros({0, 3}, DType::kF32), Transpose::kNo,
         Accumulate::kYes);
  expect_same_bits(sum, before);
  matmul(ctx, zeros({0, 3}, DType::kF32), zeros({0, 4}, DType::kF32), Transpose::kNo, zeros({4, 3}, DType::kF32),
         Transpose::kNo);
  matmul(ctx, zeros({3, 0}, DType::kF32), zeros({3, 4}, DType::kF32), Transpose::kNo, zeros({4, 0}, DType::kF32),
         Transpose::kNo);
}

TEST(Matmul, NamesTheTensorOfAWrongShapeOrDtype) {
  Context ctx = Context::cpu();
  Tensor c = zeros_f64({2, 3}), a = zeros_f64({2, 4}), b = zeros_f64({4, 3}), b_f32 = zeros({4, 3}, DType::kF32);
  Tensor ids = zeros({2, 2}, DType::kI64);
  constexpr auto kNo = Transpose::kNo, kYes = Transpose::kYes;
  EXPECT_EQ(message_of([&] {
              matmul(ctx, c, zeros_f64({3, 4}), kNo, b, kNo);
            }),
            "a: expected shape (2, 4), got (3, 4)");
  EXPECT_EQ(message_of([&] { matmul(ctx, c, a, kNo, b, kYes); }), "b: expected shape (3, 4), got (4, 3)");
  EXPECT_EQ(message_of([&] {
              matmul(ctx, zeros_f64({2, 3, 1}), a, kNo, b, kNo);
            }),
            "c: expected shape (2, 3), got (2, 3, 1)");
  EXPECT_EQ(message_of([&] { matmul(ctx, c, a, kNo, b_f32, kNo); }), "b: expected dtype F64, got F32");
  EXPECT_EQ(message_of([&] { matmul(ctx, ids, ids, kNo, ids, kNo); }), "c: expected F32 or F64, got I64");
}

TEST(Linear, NamesTheTensorOfAWrongShapeOrDtype) {
  Context ctx = Context::cpu();
  Tensor y = zeros_f64({5, 3}), x = zeros_f64({5, 4}), weight = zeros_f64({3, 4}), y_f32 = zeros({5, 3}, DType::kF32);
  EXPECT_EQ(message_of([&] {
              linear_forward(ctx, y, x, zeros_f64({3, 5}));
            }),
            "weight: expected shape (3, 4), got (3, 5)");
  EXPECT_EQ(message_of([&] { linear_forward(ctx, y_f32, x, weight); }), "y: expected dtype F64, got F32");
  EXPECT_EQ(message_of([&] {
              linear_backward_input(ctx, zeros_f64({6, 4}), y, weight);
            }),
            "d_x: expected shape (5, 4), got (6, 4)");
  EXPECT_EQ(message_of([&] {
              linear_backward_weight(ctx, zeros_f64({4, 3}), y, x);
            }),
            "d_weight: expected shape (3, 4), got (4, 3)");
}

}  // namespace
}  // namespace braid
