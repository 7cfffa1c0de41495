#include "kernels/lm_head_loss.h"

#include <algorithm>

#include "tests/messages.h"
#include "tests/testing.h"

namespace braid {
namespace {

using namespace braid::testing;

struct Problem {
  Tensor hidden, weight, targets;
  double scale = 1;
  Tensor loss_sum, d_hidden, d_weight;

  // Every seventh token has no target.
  Problem(int64_t N, int64_t C, int64_t V, DType dtype) {
    hidden = random_normal({N, C}, dtype, 1);
    weight = random_normal({V, C}, dtype, 2);
    targets = zeros({N}, DType::kI64);
    for (int64_t n = 0; n < N; ++n) targets.data<int64_t>()[n] = n % 7 == 3 ? -1 : (n * 31 + 5) % V;
    loss_sum = poisoned({1}, DType::kF64);
    d_hidden = poisoned({N, C}, dtype);
    d_weight = zeros({V, C}, dtype);
  }
  double forward() {
    Context ctx = Context::cpu();
    lm_head_loss_forward(ctx, loss_sum, hidden, weight, targets);
    return loss_sum.data<double>()[0];
  }
  double forward_backward() {
    Context ctx = Context::cpu();
    lm_head_loss_forward_backward(ctx, loss_sum, d_hidden, d_weight, hidden, weight, targets, scale);
    return loss_sum.data<double>()[0];
  }
};

// Log-softmax over whole rows of logits, in double.
struct Naive {
  double loss_sum = 0;
  Tensor d_hidden, d_weight;

  explicit Naive(const Problem& p) {
    const int64_t N = p.hidden.dim(0), C = p.hidden.dim(1), V = p.weight.dim(0);
    d_hidden = zeros_f64({N, C});
    d_weight = zeros_f64({V, C});
    const Tensor hidden = converted(p.hidden, DType::kF64), weight = converted(p.weight, DType::kF64);
    std::vector<double> logits(V);
    for (int64_t n = 0; n < N; ++n) {
      const int64_t target = p.targets.data<int64_t>()[n];
      if (target < 0) continue;
      const double* h = hidden.data<double>() + n * C;
      for (int64_t v = 0; v < V; ++v) {
        logits[v] = 0;
        for (int64_t c = 0; c < C; ++c) logits[v] += h[c] * weight.data<double>()[v * C + c];
      }
      const double highest = *std::max_element(logits.begin(), logits.end()), target_logit = logits[target];
      double sum = 0;
      for (double& l : logits) sum += l = std::exp(l - highest);
      loss_sum += highest + std::log(sum) - target_logit;
      for (int64_t v = 0; v < V; ++v) {
        const double d_logit = p.scale * (logits[v] / sum - (v == target));
        for (int64_t c = 0; c < C; ++c) {
          d_hidden.data<double>()[n * C + c] += d_logit * weight.data<double>()[v * C + c];
          d_weight.data<double>()[v * C + c] += d_logit * h[c];
        }
      }
    }
  }
};

void expect_equals_naive(Problem p, double tolerance) {
  p.scale = 0.25;
  const Naive expected(p);
  EXPECT_NEAR(p.forward(), expected.loss_sum, tolerance * expected.loss_sum);
  EXPECT_NEAR(p.forward_backward(), expected.loss_sum, tolerance * expected.loss_sum);
  expect_close(p.d_hidden, expected.d_hidden, tolerance, "d_hidden");
  expect_close(p.d_weight, expected.d_weight, tolerance, "d_weight");
}

TEST(LmHeadLoss, IsTheNegativeLogProbability) {
  Problem p(2, 1, 3, DType::kF64);
  p.hidden = tensor_of<double>({1, -1}, {2, 1});
  p.weight = tensor_of<double>({std::log(1.0), std::log(2.0), std::log(5.0)}, {3, 1});
  p.targets = tensor_of<int64_t>({1, 2}, {2});
  // Probabilities 1/8, 2/8, 5/8 and, with 1 + 1/2 + 1/5 = 1.7, (1, 1/2, 1/5) / 1.7
  EXPECT_NEAR(p.forward(), std::log(4.0) + std::log(8.5), 1e-15);
}

TEST(LmHeadLoss, EqualsLogSoftmaxOverWholeRows) {
  expect_equals_naive(Problem(1, 3, 5, DType::kF64), 1e-14);
  expect_equals_naive(Problem(40, 8, 260, DType::kF64), 1e-13);
  expect_equals_naive(Problem(40, 8, 260, DType::kF32), 1e-6);
}

TEST(LmHeadLoss, EqualsLogSoftmaxAcrossChunks) {
  expect_equals_naive(Problem(2100, 4, 37, DType::kF64), 1e-13);   // as many tokens as a chunk may have
  expect_equals_naive(Problem(2048, 4, 37, DType::kF32), 2e-6);    // whole chunks
  expect_equals_naive(Problem(150, 2, 70000, DType::kF32), 2e-6);  // as many logits as a chunk may have
}

TEST(LmHeadLoss, EveryRowHasASumOfItsOwn) {
  Problem p(2100, 4, 37, DType::kF64);  // rows of 700: the chunks of the CPU cut two of them
  p.loss_sum = poisoned({3}, DType::kF64);
  p.forward();
  for (int64_t row = 0; row < 3; ++row) {
    Problem one(2100, 4, 37, DType::kF64);
    for (int64_t n = 0; n < 2100; ++n)
      if (n / 700 != row) one.targets.data<int64_t>()[n] = -1;
    const double expected = Naive(one).loss_sum;
    EXPECT_NEAR(p.loss_sum.data<double>()[row], expected, 1e-13 * expected) << row;
  }
}

TEST(LmHeadLoss, TokensWithoutTargetContributeNothing) {
  Problem all(15, 4, 6, DType::kF32);
  all.forward_backward();
  for (int64_t n : {3, 10})
    for (int64_t c = 0; c < 4; ++c) EXPECT_EQ(all.d_hidden.data<float>()[n * 4 + c], 0);

  Problem changed(15, 4, 6, DType::kF32);
  for (int64_t n : {3, 10}) std::fill_n(changed.hidden.data<float>() + n * 4, 4, 50.0f);
  changed.forward_backward();
  EXPECT_EQ(changed.loss_sum.data<double>()[0], all.loss_sum.data<double>()[0]);
  expect_same_bits(changed.d_weight, all.d_weight);

  Problem none(15, 4, 6, DType::kF32);
  std::fill_n(none.targets.data<int64_t>(), 15, -1);
  EXPECT_EQ(none.forward(), 0);
  EXPECT_EQ(none.forward_backward(), 0);
  for (int64_t i = 0; i < 60; ++i) EXPECT_EQ(none.d_hidden.data<float>()[i], 0);
  for (int64_t i = 0; i < 24; ++i) EXPECT_EQ(none.d_weight.data<float>()[i], 0);
}

TEST(LmHeadLoss, HugeLogitsStayFinite) {
  for (DType dtype : {DType::kF32, DType::kF64}) {
    Problem p(2, 1, 3, dtype);
    p.hidden = converted(tensor_of<double>({1, -1}, {2, 1}), dtype);
    p.weight = converted(tensor_of<double>({1e4, -1e4, 0}, {3, 1}), dtype);
    p.targets = tensor_of<int64_t>({0, 0}, {2});
    EXPECT_EQ(p.forward(), 2e4);
    EXPECT_EQ(p.forward_backward(), 2e4);
    const double expected_d_weight[] = {1, -1, 0};
    for (int64_t v = 0; v < 3; ++v) EXPECT_EQ(value_at(p.d_weight, v), expected_d_weight[v]);
    EXPECT_EQ(value_at(p.d_hidden, 0), 0);
    EXPECT_EQ(value_at(p.d_hidden, 1), -2e4);
  }
}

TEST(LmHeadLoss, OfNoTokensIsZero) {
  Problem p(0, 4, 6, DType::kF32);
  EXPECT_EQ(p.forward(), 0);
  EXPECT_EQ(p.forward_backward(), 0);
  expect_same_bits(p.d_weight, zeros({6, 4}, DType::kF32));
}

TEST(LmHeadLoss, NamesTheTensorOfAWrongShapeOrDtype) {
  auto message = [](auto&& change) {
    Problem p(5, 4, 6, DType::kF64);
    change(p);
    return message_of([&] { p.forward_backward(); });
  };
  EXPECT_EQ(message([](Problem&) {}), "");
  EXPECT_EQ(message([](Problem& p) { p.weight = zeros_f64({6, 3}); }), "weight: expected shape (6, 4), got (6, 3)");
  EXPECT_EQ(message([](Problem& p) { p.targets = zeros({4}, DType::kI64); }), "targets: expected shape (5), got (4)");
  EXPECT_EQ(message([](Problem& p) { p.targets = zeros({5}, DType::kI32); }), "targets: expected dtype I64, got I32");
  EXPECT_EQ(message([](Problem& p) { p.loss_sum = zeros({1}, DType::kF32); }),
            "loss_sums: expected dtype F64, got F32");
  EXPECT_EQ(message([](Problem& p) { p.loss_sum = zeros_f64({2}); }),
            "loss_sums: 5 tokens are not 2 rows of equal length");
  EXPECT_EQ(message([](Problem& p) { p.d_hidden = zeros_f64({5, 5}); }), "d_hidden: expected shape (5, 4), got (5, 5)");
  EXPECT_EQ(message([](Problem& p) {
              p.d_weight = zeros({6, 4}, DType::kF32);
            }),
            "d_weight: expected dtype F64, got F32");
}

}  // namespace
}  // namespace braid
