#include "kernels/swiglu.h"

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

TEST(SwiGluGradient, MatchesFiniteDifferencesInDouble) {
  Context ctx = Context::cpu();
  Tensor a = random_f64({3, 7}, 1), b = random_f64({3, 7}, 2), gate = random_f64({3, 1}, 3);
  Tensor d_h = random_f64({3, 7}, 4), h = zeros_f64({3, 7});
  Tensor d_a = poisoned({3, 7}, DType::kF64), d_b = poisoned({3, 7}, DType::kF64),
         d_gate = poisoned({3, 1}, DType::kF64);
  auto loss = [&] {
    swiglu_forward(ctx, h, a, b, gate);
    return dot(h, d_h);
  };
  swiglu_backward(ctx, d_a, d_b, d_gate, d_h, a, b, gate);
  expect_gradient(loss, a, d_a, 1e-9, "a");
  expect_gradient(loss, b, d_b, 1e-9, "b");
  expect_gradient(loss, gate, d_gate, 1e-9, "gate");
}

TEST(SwiGluGradient, MayOverwriteTheGradientItReads) {
  Context ctx = Context::cpu();
  Tensor a = random_f64({3, 37}, 1), b = random_f64({3, 37}, 2), gate = random_f64({3, 1}, 3);
  Tensor d_h = random_f64({3, 37}, 4), in_place = copy_of(d_h), d_a = zeros_f64({3, 37});
  Tensor d_b[2] = {zeros_f64({3, 37}), zeros_f64({3, 37})}, d_gate[2] = {zeros_f64({3, 1}), zeros_f64({3, 1})};
  swiglu_backward(ctx, d_a, d_b[0], d_gate[0], d_h, a, b, gate);
  swiglu_backward(ctx, in_place, d_b[1], d_gate[1], in_place, a, b, gate);
  expect_same_bits(in_place, d_a);
  expect_same_bits(d_b[1], d_b[0]);
  expect_same_bits(d_gate[1], d_gate[0]);
}

TEST(SwiGlu, FloatMatchesDouble) {
  Context ctx = Context::cpu();
  Tensor a = random_f64({20, 100}, 1, 3), b = random_f64({20, 100}, 2), gate = random_f64({20, 1}, 3);
  Tensor d_h = random_f64({20, 100}, 4);
  auto run = [&](DType dtype) {
    Tensor h = poisoned({20, 100}, dtype), d_a = poisoned({20, 100}, dtype), d_b = poisoned({20, 100}, dtype);
    Tensor d_gate = poisoned({20, 1}, dtype);
    Tensor in[] = {converted(a, dtype), converted(b, dtype), converted(gate, dtype), converted(d_h, dtype)};
    swiglu_forward(ctx, h, in[0], in[1], in[2]);
    swiglu_backward(ctx, d_a, d_b, d_gate, in[3], in[0], in[1], in[2]);
    return std::vector<Tensor>{h, d_a, d_b, d_gate};
  };
  const auto actual = run(DType::kF32), expected = run(DType::kF64);
  for (size_t i = 0; i < actual.size(); ++i) expect_close(actual[i], expected[i], 1e-6);
}

TEST(SwiGlu, SameBitsForEveryThreadCount) {
  Tensor a = random_normal({101, 40}, DType::kF32, 1), b = random_normal({101, 40}, DType::kF32, 2);
  Tensor gate = random_normal({101, 1}, DType::kF32, 3), d_h = random_normal({101, 40}, DType::kF32, 4);
  expect_same_bits_for_every_thread_count([&] {
    Context ctx = Context::cpu();
    Tensor h = zeros({101, 40}, DType::kF32), d_a = zeros({101, 40}, DType::kF32), d_b = zeros({101, 40}, DType::kF32);
    Tensor d_gate = zeros({101, 1}, DType::kF32);
    swiglu_forward(ctx, h, a, b, gate);
    swiglu_backward(ctx, d_a, d_b, d_gate, d_h, a, b, gate);
    return std::vector<Tensor>{h, d_a, d_b, d_gate};
  });
}

TEST(SwiGlu, NamesTheTensorOfAWrongShapeOrDtype) {
  Context ctx = Context::cpu();
  Tensor x = zeros_f64({3, 8});
  try {
    swiglu_forward(ctx, x, x, x, zeros_f64({3}));
    FAIL();
  } catch (const ShapeError& e) {
    EXPECT_STREQ(e.what(), "gate: expected shape (3, 1), got (3)");
  }
  try {
    swiglu_backward(ctx, x, zeros({3, 8}, DType::kF32), zeros_f64({3, 1}), x, x, x, zeros_f64({3, 1}));
    FAIL();
  } catch (const DTypeError& e) {
    EXPECT_STREQ(e.what(), "d_b: expected dtype F64, got F32");
  }
}

}  // namespace
}  // namespace braid
