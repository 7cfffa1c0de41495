#include "kernels/largest_magnitude.h"

#include "tests/messages.h"
#include "tests/testing.h"

namespace braid {
namespace {

using namespace braid::testing;

double largest_of(const Tensor& x) {
  Context ctx = Context::cpu();
  Tensor out = poisoned({1}, DType::kF64);
  largest_magnitude(ctx, out, x);
  return out.data<double>()[0];
}

TEST(LargestMagnitude, OfKnownValues) {
  EXPECT_EQ(largest_of(tensor_of<float>({1, -5, 3, 4}, {2, 2})), 5);
  EXPECT_EQ(largest_of(tensor_of<double>({0.5, -0.25}, {2})), 0.5);
  EXPECT_EQ(largest_of(zeros({0}, DType::kF32)), 0);
}

TEST(LargestMagnitude, PassesOnWhatIsNotFinite) {
  EXPECT_TRUE(std::isinf(largest_of(tensor_of<float>({1, -INFINITY}, {2}))));
  EXPECT_TRUE(std::isnan(largest_of(tensor_of<float>({INFINITY, -NAN, 3}, {3}))));
  EXPECT_TRUE(std::isnan(largest_of(tensor_of<double>({NAN, 3}, {2}))));
}

TEST(LargestMagnitude, NamesTheTensorOfAWrongShapeOrDtype) {
  Context ctx = Context::cpu();
  EXPECT_EQ(message_of<ShapeError>([&] { largest_magnitude(ctx, zeros_f64({2}), zeros_f64({3})); }),
            "out: expected shape (1), got (2)");
  EXPECT_EQ(message_of<DTypeError>([&] { largest_magnitude(ctx, zeros({1}, DType::kF32), zeros_f64({3})); }),
            "out: expected dtype F64, got F32");
  EXPECT_THROW(largest_magnitude(ctx, zeros_f64({1}), zeros({3}, DType::kI32)), DTypeError);
}

}  // namespace
}  // namespace braid
