#include "kernels/rms_norm.h"

#include "tests/testing.h"

namespace braid {
namespace {

using namespace braid::testing;

TEST(RmsNorm, ScalesRowsToUnitMeanSquare) {
  Context ctx = Context::cpu();
  Tensor x = tensor_of<double>({3, 4, 0, 0}, {2, 2}), weight = tensor_of<double>({0, 1}, {2});
  Tensor y = poisoned({2, 2}, DType::kF64), rstd = poisoned({2}, DType::kF64);
  rms_norm_forward(ctx, y, rstd, x, weight, 1e-6);
  const double r = 1 / std::sqrt(12.5 + 1e-6);
  EXPECT_DOUBLE_EQ(y.data<double>()[0], 3 * r);
  EXPECT_DOUBLE_EQ(y.data<double>()[1], 4 * r * 2);
  EXPECT_EQ(y.data<double>()[2], 0);
  EXPECT_DOUBLE_EQ(rstd.data<double>()[1], 1e3);
}

TEST(RmsNormGradient, MatchesFiniteDifferencesInDouble) {
  Context ctx = Context::cpu();
  Tensor x = random_f64({3, 8}, 1), weight = random_f64({8}, 2), d_y = random_f64({3, 8}, 3);
  Tensor y = zeros_f64({3, 8}), rstd = zeros_f64({3}), d_x = poisoned({3, 8}, DType::kF64), d_weight = zeros_f64({8});
  auto loss = [&] {
    rms_norm_forward(ctx, y, rstd, x, weight, 1e-6);
    return dot(y, d_y);
  };
  loss();
  rms_norm_backward(ctx, d_x, d_weight, d_y, x, weight, rstd);
  expect_gradient(loss, x, d_x);
  expect_gradient(loss, weight, d_weight);
}

TEST(AddRmsNormGradient, AddsToTheResidualStream) {
  Context ctx = Context::cpu();
  Tensor x = random_f64({3, 8}, 1), delta = random_f64({3, 8}, 4), weight = random_f64({8}, 2);
  Tensor d_y = random_f64({3, 8}, 3), d_stream = random_f64({3, 8}, 5);
  Tensor y = zeros_f64({3, 8}), sum = zeros_f64({3, 8}), rstd = zeros_f64({3}), d_weight = zeros_f64({8});
  auto loss = [&] {
    add_rms_norm_forward(ctx, y, sum, rstd, x, delta, weight, 1e-6);
    return dot(y, d_y) + dot(sum, d_stream);
  };
  loss();
  Tensor d_sum = copy_of(d_stream);
  add_rms_norm_backward(ctx, d_sum, d_weight, d_y, sum, weight, rstd);
  expect_gradient(loss, x, d_sum);
  expect_gradient(loss, delta, d_sum);
  expect_gradient(loss, weight, d_weight);
}

TEST(RmsNorm, SameBitsForEveryThreadCount) {
  Tensor x = random_normal({300, 40}, DType::kF32, 1), weight = random_normal({40}, DType::kF32, 2);
  Tensor d_y = random_normal({300, 40}, DType::kF32, 3);
  expect_same_bits_for_every_thread_count([&] {
    Context ctx = Context::cpu();
    Tensor y = zeros({300, 40}, DType::kF32), rstd = zeros({300}, DType::kF32), d_x = zeros({300, 40}, DType::kF32);
    Tensor d_weight = zeros({40}, DType::kF32);
    rms_norm_forward(ctx, y, rstd, x, weight, 1e-6);
    rms_norm_backward(ctx, d_x, d_weight, d_y, x, weight, rstd);
    return std::vector<Tensor>{y, rstd, d_x, d_weight};
  });
}

TEST(RmsNorm, NamesTheTensorOfAWrongShapeOrDtype) {
  Context ctx = Context::cpu();
  Tensor x = zeros_f64({3, 8}), y = zeros_f64({3, 8}), rstd = zeros_f64({3});
  try {
    rms_norm_forward(ctx, y, rstd, x, zeros_f64({7}), 1e-6);
    FAIL();
  } catch (const ShapeError& e) {
    EXPECT_STREQ(e.what(), "weight: expected shape (8), got (7)");
  }
  EXPECT_THROW(rms_norm_forward(ctx, y, rstd, x, zeros({8}, DType::kF32), 1e-6), DTypeError);
}

}  // namespace
}  // namespace braid
