#include "kernels/sum_squares.h"

#include "tests/messages.h"
#include "tests/testing.h"

namespace braid {
namespace {

using namespace braid::testing;

double sum_squares_of(const Tensor& x) {
  Context ctx = Context::cpu();
  Tensor out = poisoned({1}, DType::kF64);
  sum_squares(ctx, out, x);
  return out.data<double>()[0];
}

TEST(SumSquares, OfKnownValues) {
  EXPECT_EQ(sum_squares_of(tensor_of<float>({1, -2, 3, 4}, {2, 2})), 30);
  EXPECT_EQ(sum_squares_of(tensor_of<double>({0.5}, {1})), 0.25);
  EXPECT_EQ(sum_squares_of(zeros({0}, DType::kF32)), 0);
}

TEST(SumSquares, CountsEveryElementOfEveryBlock) {
  for (int64_t n : {1, 7, 4095, 4096, 4097, 8192, 20001}) {
    Tensor x = zeros({n}, DType::kF32);
    std::fill_n(x.data<float>(), n, 3.0f);
    EXPECT_EQ(sum_squares_of(x), 9.0 * n) << n;
  }
}

TEST(SumSquares, AddsInDouble) {
  // In fp32 the second block would be lost, and the square of 1e30 infinite.
  Tensor x = zeros({8192}, DType::kF32);
  x.data<float>()[0] = 1e4f;
  std::fill_n(x.data<float>() + 4096, 4096, 1.0f);
  EXPECT_EQ(sum_squares_of(x), 1e8 + 4096);
  EXPECT_NEAR(sum_squares_of(tensor_of<float>({1e30f}, {1})) / 1e60, 1, 1e-7);
}

TEST(SumSquares, MatchesLongDouble) {
  Tensor x = random_normal({50, 3, 601}, DType::kF32, 1);
  long double expected = 0;
  for (int64_t i = 0; i < x.numel(); ++i) expected += static_cast<long double>(x.data<float>()[i]) * x.data<float>()[i];
  EXPECT_NEAR(sum_squares_of(x) / static_cast<double>(expected), 1, 1e-14);
}

TEST(SumSquares, PassesOnWhatIsNotFinite) {
  EXPECT_TRUE(std::isinf(sum_squares_of(tensor_of<float>({1, -INFINITY}, {2}))));
  EXPECT_TRUE(std::isnan(sum_squares_of(tensor_of<float>({1, NAN}, {2}))));
}

TEST(SumSquares, SameBitsForEveryThreadCountAndAddress) {
  Tensor memory = random_normal({100001}, DType::kF32, 1);
  expect_same_bits_for_every_thread_count([&] {
    Context ctx = Context::cpu();
    Tensor out = zeros_f64({1});
    sum_squares(ctx, out, memory);
    return std::vector<Tensor>{out};
  });
  Tensor shifted_memory = allocate({100002}, DType::kF32);
  Tensor shifted = shifted_memory.rows(1, 100002);
  std::memcpy(shifted.raw(), memory.raw(), memory.bytes());
  EXPECT_EQ(sum_squares_of(shifted), sum_squares_of(memory));
}

TEST(SumSquares, NamesTheTensorOfAWrongShapeOrDtype) {
  Context ctx = Context::cpu();
  EXPECT_EQ(message_of<ShapeError>([&] { sum_squares(ctx, zeros_f64({2}), zeros_f64({3})); }),
            "out: expected shape (1), got (2)");
  EXPECT_EQ(message_of<DTypeError>([&] { sum_squares(ctx, zeros({1}, DType::kF32), zeros_f64({3})); }),
            "out: expected dtype F64, got F32");
  EXPECT_THROW(sum_squares(ctx, zeros_f64({1}), zeros({3}, DType::kI32)), DTypeError);
}

}  // namespace
}  // namespace braid
