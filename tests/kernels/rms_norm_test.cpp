#include "kernels/rms_norm.h"

#include "tests/messages.h"
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

TEST(RmsNorm, NamesTheTensorOfAWrongShapeOrDtype) {
  Context ctx = Context::cpu();
  Tensor x = zeros_f64({3, 8}), y = zeros_f64({3, 8}), rstd = zeros_f64({3});
  EXPECT_EQ(message_of<ShapeError>([&] { rms_norm_forward(ctx, y, rstd, x, zeros_f64({7}), 1e-6); }),
            "weight: expected shape (8), got (7)");
  EXPECT_THROW(rms_norm_forward(ctx, y, rstd, x, zeros({8}, DType::kF32), 1e-6), DTypeError);
}

}  // namespace
}  // namespace braid
