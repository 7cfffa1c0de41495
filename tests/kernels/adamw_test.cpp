#include "kernels/adamw.h"

#include <cmath>
#include <cstring>

#include "kernels/core/moment_codes.h"
#include "kernels/split_weights.h"
#include "tests/messages.h"
#include "tests/testing.h"

namespace braid {
namespace {

using namespace braid::testing;

using State = AdamWState;

State zero_moments(const Tensor& weight) {
  return {copy_of(weight), zeros(weight.shape(), weight.dtype()), zeros(weight.shape(), weight.dtype()), {}};
}

void fill_zero_weights(State& s) { std::memset(s.weight.raw(), 0, static_cast<size_t>(s.weight.bytes())); }

void update(const State& s, const Tensor& gradient, const AdamWStep& step) {
  Context ctx = Context::cpu();
  adamw_update(ctx, s, gradient, step);
}

TEST(AdamW, MatchesTwoStepsByHand) {
  // beta1 = 0.5, beta2 = 0.75, eps = 0.5, lr = 0.1, weight decay 0.2, gradients scaled by 0.5.
  State s = zero_moments(tensor_of<double>({1}, {1}));
  AdamWStep step{.lr = 0.1, .beta1 = 0.5, .beta2 = 0.75, .eps = 0.5, .weight_decay = 0.2, .gradient_scale = 0.5};
  step.step = 1;
  update(s, tensor_of<double>({4}, {1}), step);  // g = 2: m = 1, v = 1; corrected 2 and 4
  EXPECT_DOUBLE_EQ(s.m.data<double>()[0], 1);
  EXPECT_DOUBLE_EQ(s.v.data<double>()[0], 1);
  EXPECT_DOUBLE_EQ(s.weight.data<double>()[0], 1 - 0.1 * (2 / 2.5 + 0.2));  // 0.9
  step.step = 2;
  update(s, tensor_of<double>({-2}, {1}), step);  // g = -1: m = 0, v = 1; corrected 0 and 16/7
  EXPECT_DOUBLE_EQ(s.m.data<double>()[0], 0);
  EXPECT_DOUBLE_EQ(s.v.data<double>()[0], 1);
  EXPECT_DOUBLE_EQ(s.weight.data<double>()[0], 0.9 * (1 - 0.1 * 0.2));
}

TEST(AdamW, FirstStepHasTheSizeOfTheLearningRate) {
  State s = zero_moments(tensor_of<double>({0, 0, 0}, {3}));
  update(s, tensor_of<double>({1e-3, -5, 0}, {3}),
         {.lr = 0.01, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-12, .weight_decay = 0, .gradient_scale = 1, .step = 1});
  EXPECT_NEAR(s.weight.data<double>()[0], -0.01, 1e-9);
  EXPECT_NEAR(s.weight.data<double>()[1], 0.01, 1e-9);
  EXPECT_EQ(s.weight.data<double>()[2], 0);
}

// The definition, one number at a time, in double.
TEST(AdamW, FollowsTheDefinitionOverManySteps) {
  constexpr int64_t kCount = 37;
  for (DType dtype : {DType::kF64, DType::kF32}) {
    Tensor start = converted(random_normal({kCount}, DType::kF32, 1), DType::kF64);
    State s = zero_moments(converted(start, dtype));
    Tensor w = copy_of(start);
    std::vector<double> m(kCount), v(kCount);
    for (int64_t t = 1; t <= 200; ++t) {
      const AdamWStep step{.lr = 1e-2 / t,
                           .beta1 = 0.9,
                           .beta2 = 0.95,
                           .eps = 1e-8,
                           .weight_decay = 0.1,
                           .gradient_scale = t % 3 ? 1.0 : 0.25,
                           .step = t};
      Tensor gradient = converted(random_normal({kCount}, DType::kF32, 100 + t, 1e-3, 1e-3), DType::kF64);
      update(s, converted(gradient, dtype), step);
      for (int64_t i = 0; i < kCount; ++i) {
        const double g = step.gradient_scale * gradient.data<double>()[i];
        m[i] = 0.9 * m[i] + 0.1 * g;
        v[i] = 0.95 * v[i] + 0.05 * g * g;
        const double m_hat = m[i] / (1 - std::pow(0.9, t)), v_hat = v[i] / (1 - std::pow(0.95, t));
        double& wi = w.data<double>()[i];
        wi -= step.lr * (m_hat / (std::sqrt(v_hat) + 1e-8) + 0.1 * wi);
      }
    }
    const double tolerance = dtype == DType::kF64 ? 1e-13 : 1e-6;
    expect_close(s.weight, w, tolerance, name_of(dtype));
    expect_close(s.m, tensor_of(m, {kCount}), tolerance, name_of(dtype));
    expect_close(s.v, tensor_of(v, {kCount}), tolerance, name_of(dtype));
  }
}

TEST(AdamW, WeightDecayIsDecoupledFromTheMoments) {
  Tensor start = random_f64({50}, 1), gradient = random_f64({50}, 2);
  State plain = zero_moments(start), decayed = zero_moments(start), no_gradient = zero_moments(start);
  AdamWStep step{
      .lr = 0.1, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8, .weight_decay = 0, .gradient_scale = 1, .step = 1};
  update(plain, gradient, step);
  step.weight_decay = 0.3;
  update(decayed, gradient, step);
  update(no_gradient, zeros_f64({50}), step);
  expect_same_bits(decayed.m, plain.m);
  expect_same_bits(decayed.v, plain.v);
  for (int64_t i = 0; i < 50; ++i) {
    const double w = start.data<double>()[i];
    EXPECT_NEAR(decayed.weight.data<double>()[i], plain.weight.data<double>()[i] - 0.1 * 0.3 * w, 1e-15);
    EXPECT_NEAR(no_gradient.weight.data<double>()[i], w * (1 - 0.1 * 0.3), 1e-15);
  }
}

TEST(AdamW, GradientScaleEqualsAScaledGradient) {
  Tensor start = random_f64({50}, 1), gradient = random_f64({50}, 2), halved = copy_of(gradient);
  for (int64_t i = 0; i < 50; ++i) halved.data<double>()[i] *= 0.5;
  State scaled = zero_moments(start), direct = zero_moments(start);
  AdamWStep step{
      .lr = 0.1, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-3, .weight_decay = 0.1, .gradient_scale = 0.5, .step = 1};
  update(scaled, gradient, step);
  step.gradient_scale = 1;
  update(direct, halved, step);
  expect_same_bits(scaled.weight, direct.weight);
  expect_same_bits(scaled.m, direct.m);
  expect_same_bits(scaled.v, direct.v);
}

TEST(AdamW, KeepsTheBiasCorrectionOfASlowAverageInFp32) {
  // With beta2 = 1 - 1e-7 a correction formed in fp32 would be off by a fifth.
  State s = zero_moments(tensor_of<float>({0}, {1}));
  update(s, tensor_of<float>({1}, {1}),
         {.lr = 1, .beta1 = 0, .beta2 = 1 - 1e-7, .eps = 0, .weight_decay = 0, .gradient_scale = 1, .step = 1});
  EXPECT_NEAR(s.weight.data<float>()[0], -1, 1e-6);
}

TEST(AdamW, ShardsGiveTheBitsOfTheWhole) {
  constexpr int64_t kCount = 1003;
  Tensor start = random_normal({kCount}, DType::kF32, 1), gradient = random_normal({kCount}, DType::kF32, 2);
  State whole = zero_moments(start), parts = zero_moments(start);
  for (int64_t t = 1; t <= 3; ++t) {
    const AdamWStep step{
        .lr = 0.1, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8, .weight_decay = 0.1, .gradient_scale = 0.7, .step = t};
    update(whole, gradient, step);
    for (auto [begin, end] : {std::pair<int64_t, int64_t>{0, 5}, {5, 338}, {338, kCount}})
      update({parts.weight.rows(begin, end), parts.m.rows(begin, end), parts.v.rows(begin, end), {}},
             gradient.rows(begin, end), step);
  }
  expect_same_bits(parts.weight, whole.weight);
  expect_same_bits(parts.m, whole.m);
  expect_same_bits(parts.v, whole.v);
}

// A bf16 weight beside its low bits is an fp32 master, to the last bit of every moment and step.
TEST(AdamW, SplitMastersAreThoseInFp32) {
  Context ctx = Context::cpu();
  constexpr int64_t kCount = 20003;
  const Tensor start = random_normal({kCount}, DType::kF32, 1, 0.02);
  const State plain = zero_moments(start);
  State split = zero_moments(start);
  split.weight = poisoned({kCount}, DType::kBF16);
  split.low = zeros({kCount, 2}, DType::kU8);
  split_weights(ctx, split.weight, split.low, start);
  Tensor joined = poisoned({kCount}, DType::kF32), weight = zeros({kCount}, DType::kBF16);
  for (int64_t t = 1; t <= 300; ++t) {
    const AdamWStep step{.lr = 1e-3 / double(t),
                         .beta1 = 0.9,
                         .beta2 = 0.95,
                         .eps = 1e-8,
                         .weight_decay = 0.1,
                         .gradient_scale = t % 3 ? 1.0 : 0.25,
                         .step = t};
    const Tensor gradient = random_normal({kCount}, DType::kF32, 100 + t, 1e-3);
    update(plain, gradient, step);
    update(split, gradient, step);
  }
  join_weights(ctx, joined, split.weight, split.low);
  expect_same_bits(joined, plain.weight, "master");
  expect_same_bits(split.m, plain.m, "m");
  expect_same_bits(split.v, plain.v, "v");
  split_weights(ctx, weight, {}, plain.weight);
  expect_same_bits(split.weight, weight, "weight");
}

int64_t num_blocks(int64_t n) { return (n + MomentCodes::kBlock - 1) / MomentCodes::kBlock; }

// Moments of 0 in a byte each.
State zero_codes(const Tensor& weight) {
  const int64_t n = weight.numel();
  return {copy_of(weight),
          zeros({n}, DType::kU8),
          zeros({n}, DType::kU8),
          {},
          zeros({num_blocks(n)}, weight.dtype()),
          zeros({num_blocks(n)}, weight.dtype())};
}
double m_at(const State& s, int64_t i) {
  return MomentCodes::m_of(s.m.data<uint8_t>()[i],
                           MomentCodes::unit_of_m(value_at(s.m_scale, i / MomentCodes::kBlock)));
}
double v_at(const State& s, int64_t i) {
  return MomentCodes::v_of(s.v.data<uint8_t>()[i],
                           MomentCodes::unit_of_v(value_at(s.v_scale, i / MomentCodes::kBlock)));
}

// From moments of 0 the first are those of the gradient alone: what comes back is the next code, of every sign and
// size, and the largest of a block is itself.
TEST(AdamW, AByteHoldsAMomentToAFewPercent) {
  constexpr int64_t kCount = 3 * MomentCodes::kBlock + 5;
  Tensor gradient = random_f64({kCount}, 3);
  for (int64_t i = 0; i < kCount; ++i) gradient.data<double>()[i] *= std::pow(10, -(i % 6));
  gradient.data<double>()[7] = 0;
  State s = zero_codes(zeros_f64({kCount}));
  const AdamWStep step{.lr = 0.1, .beta1 = 0.9, .beta2 = 0.96, .eps = 1e-8, .gradient_scale = 1, .step = 1};
  update(s, gradient, step);
  double largest[4] = {};
  for (int64_t i = 0; i < kCount; ++i)
    largest[i / MomentCodes::kBlock] =
        std::max(largest[i / MomentCodes::kBlock], std::fabs(gradient.data<double>()[i]));
  for (int64_t i = 0; i < kCount; ++i) {
    const double g = gradient.data<double>()[i], most = largest[i / MomentCodes::kBlock];
    if (g == 0) {
      EXPECT_EQ(m_at(s, i), 0);
      EXPECT_EQ(v_at(s, i), 0);
      continue;
    }
    // Half the step between codes c - 1/2 and c + 1/2 of the fourth power, a whole one of v.
    const double share = std::sqrt(std::sqrt(std::fabs(g) / most)), m = 0.1 * g, root = 0.2 * std::fabs(g);
    const double m_error = 2.05 / (127 * share) + std::pow(0.5 / (127 * share), 2) * 7,
                 root_error = 4.1 / (255 * share) + std::pow(1 / (255 * share), 2) * 7;
    EXPECT_LE(std::fabs(m_at(s, i) - m), m_error * std::fabs(m)) << i << ' ' << g << ' ' << most;
    EXPECT_LE(std::fabs(std::sqrt(v_at(s, i)) - root), root_error * root) << i << ' ' << g << ' ' << most;
    EXPECT_GT(v_at(s, i), 0) << i;
    if (std::fabs(g) == most) {
      EXPECT_NEAR(m_at(s, i), m, 1e-12 * most);
      EXPECT_NEAR(v_at(s, i), root * root, 1e-12 * most * most);
    }
  }
}

// 200 updates by gradients whose sizes differ by three orders of magnitude in every block: each update against that of
// the same gradients with moments in fp64.
TEST(AdamW, UpdatesByMomentsInAByteAreCloseToThose) {
  constexpr int64_t kCount = 64 * MomentCodes::kBlock;
  const Tensor sizes = random_f64({kCount}, 1), mean = random_f64({kCount}, 2);
  for (DType dtype : {DType::kF64, DType::kF32}) {
    State exact = zero_moments(zeros({kCount}, dtype)), coded = zero_codes(zeros({kCount}, dtype));
    double sum_sq_error = 0, sum_sq = 0, v_sum = 0, v_expected = 0;
    for (int64_t t = 1; t <= 200; ++t) {
      const AdamWStep step{
          .lr = 1, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-12, .gradient_scale = 1, .step = t, .stream = 3};
      Tensor g = random_f64({kCount}, 100 + t);
      for (int64_t i = 0; i < kCount; ++i)
        g.data<double>()[i] = std::exp(sizes.data<double>()[i]) * (g.data<double>()[i] + 0.2 * mean.data<double>()[i]);
      fill_zero_weights(exact), fill_zero_weights(coded);
      update(exact, converted(g, dtype), step);
      update(coded, converted(g, dtype), step);
      for (int64_t i = 0; t > 20 && i < kCount; ++i) {
        const double expected = value_at(exact.weight, i), error = value_at(coded.weight, i) - expected;
        sum_sq_error += error * error, sum_sq += expected * expected;
        v_sum += v_at(coded, i) / std::exp(2 * sizes.data<double>()[i]);
        v_expected += value_at(exact.v, i) / std::exp(2 * sizes.data<double>()[i]);
      }
    }
    EXPECT_LT(std::sqrt(sum_sq_error / sum_sq), 0.08) << name_of(dtype);
    EXPECT_NEAR(v_sum / v_expected, 1, 3e-3) << name_of(dtype);
    std::printf("updates off by %.4f RMS, v by %.5f in the mean\n", std::sqrt(sum_sq_error / sum_sq),
                v_sum / v_expected - 1);
  }
}

// Where nothing is added, v falls by a thousandth a step, a small part of what lies between two codes; the largest of
// the block stays.
TEST(AdamW, AVInAByteFollowsInTheMean) {
  constexpr int64_t kCount = 40 * MomentCodes::kBlock;
  State s = zero_codes(zeros_f64({kCount}));
  Tensor gradient = zeros_f64({kCount});
  for (int64_t i = 0; i < kCount; ++i) gradient.data<double>()[i] = i % MomentCodes::kBlock == 0 ? 1 : 0.1;
  AdamWStep step{.lr = 0, .beta1 = 0, .beta2 = 0, .eps = 1e-8, .gradient_scale = 1, .step = 1};
  update(s, gradient, step);
  for (int64_t i = 0; i < kCount; ++i) gradient.data<double>()[i] = i % MomentCodes::kBlock == 0 ? 1 : 0;
  step.beta2 = 0.999;
  for (step.step = 2; step.step <= 1001; ++step.step) update(s, gradient, step);
  double sum = 0;
  for (int64_t i = 0; i < kCount; ++i)
    if (i % MomentCodes::kBlock != 0) sum += v_at(s, i);
  EXPECT_NEAR(sum / double(kCount - kCount / MomentCodes::kBlock) / (0.01 * std::pow(0.999, 1000)), 1, 0.03);
  EXPECT_NEAR(v_at(s, 0), 1, 1e-9);
}

TEST(AdamW, ShardsOfMomentsInAByteGiveTheBitsOfTheWhole) {
  constexpr int64_t kCount = 1003, kBlock = MomentCodes::kBlock;
  Tensor start = random_normal({kCount}, DType::kF32, 1);
  State whole = zero_codes(start), parts = zero_codes(start);
  for (int64_t t = 1; t <= 5; ++t) {
    const Tensor gradient = random_normal({kCount}, DType::kF32, 2 + t);
    AdamWStep step{
        .lr = 0.1, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8, .weight_decay = 0.1, .gradient_scale = 0.7, .step = t};
    step.stream = 5;
    update(whole, gradient, step);
    for (auto [begin, end] : {std::pair<int64_t, int64_t>{0, kBlock}, {kBlock, 5 * kBlock}, {5 * kBlock, kCount}}) {
      step.first = begin;
      update({parts.weight.rows(begin, end),
              parts.m.rows(begin, end),
              parts.v.rows(begin, end),
              {},
              parts.m_scale.rows(begin / kBlock, num_blocks(end)),
              parts.v_scale.rows(begin / kBlock, num_blocks(end))},
             gradient.rows(begin, end), step);
    }
  }
  expect_same_bits(parts.weight, whole.weight);
  expect_same_bits(parts.m, whole.m);
  expect_same_bits(parts.v, whole.v);
  expect_same_bits(parts.m_scale, whole.m_scale);
  expect_same_bits(parts.v_scale, whole.v_scale);
}

// What is not a number does not hide in a code.
TEST(AdamW, ANanMakesTheBlockOfMomentsNan) {
  State s = zero_codes(zeros({2 * MomentCodes::kBlock}, DType::kF32));
  Tensor gradient = random_normal({2 * MomentCodes::kBlock}, DType::kF32, 1);
  gradient.data<float>()[3] = std::nanf("");
  update(s, gradient, {.lr = 0.1, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8, .gradient_scale = 1, .step = 1});
  EXPECT_TRUE(std::isnan(m_at(s, 3)));
  EXPECT_TRUE(std::isnan(v_at(s, 3)));
  EXPECT_FALSE(std::isnan(m_at(s, MomentCodes::kBlock)));
}

TEST(AdamW, NamesTheTensorOfAWrongShapeOrDtype) {
  State s = zero_moments(zeros_f64({4}));
  const AdamWStep step{.lr = 0.1, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8, .step = 1};
  EXPECT_EQ(message_of<ShapeError>([&] { update(s, zeros_f64({5}), step); }), "gradient: expected shape (4), got (5)");
  s.v = zeros({4}, DType::kF32);
  EXPECT_EQ(message_of<DTypeError>([&] { update(s, zeros_f64({4}), step); }), "v: expected dtype F64, got F32");
  State split = zero_moments(zeros({4}, DType::kF32));
  split.low = zeros({4, 2}, DType::kU8);
  const auto message = [&] { return message_of<DTypeError>([&] { update(split, zeros({4}, DType::kF32), step); }); };
  EXPECT_EQ(message(), "low: none beside a weight in F32");
  split.weight = zeros({4}, DType::kBF16);
  EXPECT_EQ(message(), "");
  split.low = {};
  EXPECT_EQ(message(), "low: missing beside a weight in BF16");
  State coded = zero_codes(zeros({4}, DType::kF32));
  coded.v_scale = {};
  EXPECT_EQ(message_of<ShapeError>([&] { update(coded, zeros({4}, DType::kF32), step); }),
            "v_scale: expected shape (1), got ()");
  coded.v_scale = zeros({1}, DType::kF32);
  AdamWStep inside = step;
  inside.first = 5;
  EXPECT_EQ(message_of<ShapeError>([&] { update(coded, zeros({4}, DType::kF32), inside); }),
            "m: begins inside a block, at element 5");
  State empty = zero_moments(zeros_f64({0}));
  EXPECT_NO_THROW(update(empty, zeros_f64({0}), step));
}

}  // namespace
}  // namespace braid
