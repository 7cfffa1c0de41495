#include "kernels/swiglu.h"

#include "tests/messages.h"
#include "tests/testing.h"

namespace braid {
namespace {

using namespace braid::testing;

TEST(SwiGlu, MatchesTheFormula) {
  Context ctx = Context::cpu();
  Tensor a = tensor_of<double>({0, 1, -2, 30}, {2, 2}), b = tensor_of<double>({5, 2, 3, -1}, {2, 2});
  Tensor gate = tensor_of<double>({0, std::log(3.0)}, {2, 1});  // sigmoid: 1/2 and 3/4
  Tensor h = poisoned({2, 2}, DType::kF64);
  swiglu_forward(ctx, h, a, b, gate);
  EXPECT_DOUBLE_EQ(h.data<double>()[0], 0);
  EXPECT_NEAR(h.data<double>()[1], 1 / (1 + std::exp(-1.0)), 1e-14);
  EXPECT_NEAR(h.data<double>()[2], -0.75 * 6 / (1 + std::exp(2.0)), 1e-14);
  EXPECT_NEAR(h.data<double>()[3], -0.75 * 30 / (1 + std::exp(-30.0)), 1e-13);
}

TEST(SwiGlu, StaysFiniteFarFromZero) {
  Context ctx = Context::cpu();
  for (DType dtype : {DType::kF32, DType::kF64}) {
    Tensor a = converted(tensor_of<double>({-1e4, 1e4, -90, 90, -800, 800}, {1, 6}), dtype);
    Tensor b = converted(tensor_of<double>({1, 1, 1, 1, 1, 1}, {1, 6}), dtype);
    Tensor gate = converted(tensor_of<double>({1e4}, {1, 1}), dtype), h = poisoned({1, 6}, dtype);
    Tensor d_a = poisoned({1, 6}, dtype), d_b = poisoned({1, 6}, dtype), d_gate = poisoned({1, 1}, dtype);
    swiglu_forward(ctx, h, a, b, gate);
    swiglu_backward(ctx, d_a, d_b, d_gate, b, a, b, gate);
    for (int64_t i = 0; i < 6; ++i) {
      EXPECT_NEAR(value_at(h, i), std::max(value_at(a, i), 0.0), 1e-3) << name_of(dtype);
      EXPECT_NEAR(value_at(d_a, i), value_at(a, i) > 0, 1e-3) << name_of(dtype);
      EXPECT_NEAR(value_at(d_b, i), std::max(value_at(a, i), 0.0), 1e-3) << name_of(dtype);
    }
    EXPECT_EQ(value_at(d_gate, 0), 0) << name_of(dtype);
  }
}

TEST(SwiGlu, NamesTheTensorOfAWrongShapeOrDtype) {
  Context ctx = Context::cpu();
  Tensor x = zeros_f64({3, 8});
  EXPECT_EQ(message_of<ShapeError>([&] { swiglu_forward(ctx, x, x, x, zeros_f64({3})); }),
            "gate: expected shape (3, 1), got (3)");
  EXPECT_EQ(message_of<DTypeError>([&] {
              swiglu_backward(ctx, x, zeros({3, 8}, DType::kF32), zeros_f64({3, 1}), x, x, x, zeros_f64({3, 1}));
            }),
            "d_b: expected dtype F64, got F32");
}

}  // namespace
}  // namespace braid
