#include "kernels/router.h"

#include <algorithm>
#include <numeric>

#include "tests/messages.h"
#include "tests/testing.h"

namespace braid {
namespace {

using namespace braid::testing;

RouterOutputs outputs(const Segments& segments, int64_t E, int64_t K, DType dtype) {
  const int64_t N = segments.num_tokens(), B = segments.num_rows;
  return {.expert_id = poisoned({N, K}, DType::kI32),
          .gate = poisoned({N, K}, dtype),
          .prob = poisoned({N, E}, dtype),
          .lse = poisoned({N}, dtype),
          .counts = poisoned({B, E}, DType::kI64),
          .prob_sum = poisoned({B, E}, DType::kF64),
          .z_sum = poisoned({B}, DType::kF64)};
}

RouterOutputs route(const Tensor& logits, const Segments& segments, int64_t K, GateNorm norm = GateNorm::kTopK) {
  Context ctx = Context::cpu();
  RouterOutputs out = outputs(segments, logits.dim(1), K, logits.dtype());
  router_forward(ctx, out, logits, segments, norm);
  return out;
}

template <class T>
std::vector<T> values_of(const Tensor& t) {
  return {t.data<T>(), t.data<T>() + t.numel()};
}

double entropy(const Tensor& logits, const RouterOutputs& out, const Segments& segments) {
  Context ctx = Context::cpu();
  Tensor sum = poisoned({1}, DType::kF64);
  router_entropy(ctx, sum, logits, out, segments);
  return sum.data<double>()[0];
}

TEST(RouterEntropy, IsThatOfTheProbabilities) {
  for (const DType dtype : {DType::kF64, DType::kF32}) {
    for (const int64_t E : {1, 2, 63, 130}) {
      Segments segments = Segments::whole_rows(3, 67);
      segments.valid[5] = segments.valid[200] = 0;
      const Tensor logits = random_normal({201, E}, dtype, 7, 2);
      const RouterOutputs out = route(logits, segments, 1);
      double expected = 0;
      for (int64_t n = 0; n < 201; ++n) {
        for (int64_t e = 0; segments.valid[n] && e < E; ++e) {
          const double p = value_at(out.prob, n * E + e);
          if (p > 0) expected -= p * std::log(p);
        }
      }
      EXPECT_NEAR(entropy(logits, out, segments), expected, (dtype == DType::kF64 ? 1e-11 : 2e-4)) << E;
    }
  }
}

TEST(RouterEntropy, OfEqualLogitsIsTheLogarithmOfTheirNumber) {
  const Segments segments = Segments::whole_rows(1, 4), none = Segments::whole_rows(0, 4);
  const Tensor logits = tensor_of<double>(std::vector<double>(32, 3.5), {4, 8}), empty = zeros_f64({0, 8});
  EXPECT_NEAR(entropy(logits, route(logits, segments, 2), segments), 4 * std::log(8.0), 1e-13);
  EXPECT_EQ(entropy(empty, route(empty, none, 2), none), 0);
}

TEST(Router, RoutesKnownLogits) {
  // Two rows of two tokens; probabilities 1/8, 4/8, 2/8, 1/8 and so on.
  const double l = std::log(2.0);
  Tensor logits = tensor_of<double>({0, 2 * l, l, 0,  //
                                     l, 0, 0, 2 * l,  //
                                     0, 0, 0, 0,      //
                                     5, 2 * l + 5, l + 5, 5},
                                    {4, 4});
  Segments segments = Segments::whole_rows(2, 2);
  const RouterOutputs out = route(logits, segments, 2);
  // Slots ascend by expert.
  EXPECT_EQ(values_of<int32_t>(out.expert_id), (std::vector<int32_t>{1, 2, 0, 3, 0, 1, 1, 2}));
  const std::vector<double> gates = {2.0 / 3, 1.0 / 3, 1.0 / 3, 2.0 / 3, 0.5, 0.5, 2.0 / 3, 1.0 / 3};
  for (int64_t i = 0; i < 8; ++i) EXPECT_NEAR(out.gate.data<double>()[i], gates[i], 1e-14);
  EXPECT_NEAR(out.prob.data<double>()[1], 0.5, 1e-14);
  EXPECT_NEAR(out.lse.data<double>()[0], 3 * l, 1e-14);
  EXPECT_NEAR(out.lse.data<double>()[3], 3 * l + 5, 1e-14);
  EXPECT_EQ(values_of<int64_t>(out.counts), (std::vector<int64_t>{1, 1, 1, 1, 1, 2, 1, 0}));
  const std::vector<double> prob_sum = {3.0 / 8, 5.0 / 8, 3.0 / 8, 5.0 / 8, 3.0 / 8, 6.0 / 8, 4.0 / 8, 3.0 / 8};
  for (int64_t i = 0; i < 8; ++i) EXPECT_NEAR(out.prob_sum.data<double>()[i], prob_sum[i], 1e-14);
  EXPECT_NEAR(out.z_sum.data<double>()[0], 18 * l * l, 1e-13);
  EXPECT_NEAR(out.z_sum.data<double>()[1], 4 * l * l + (3 * l + 5) * (3 * l + 5), 1e-12);
}

TEST(Router, WithoutNormGatesAreTheProbabilities) {
  Tensor logits = random_f64({5, 6}, 1);
  const RouterOutputs out = route(logits, Segments::whole_rows(1, 5), 3, GateNorm::kNone);
  for (int64_t n = 0; n < 5; ++n)
    for (int64_t k = 0; k < 3; ++k)
      EXPECT_EQ(out.gate.data<double>()[n * 3 + k],
                out.prob.data<double>()[n * 6 + out.expert_id.data<int32_t>()[n * 3 + k]]);
}

TEST(Router, EqualLogitsGiveTheFirstExperts) {
  for (DType dtype : {DType::kF32, DType::kF64}) {
    Tensor logits = zeros({3, 32}, dtype);
    const RouterOutputs out = route(logits, Segments::whole_rows(1, 3), 5);
    EXPECT_EQ(values_of<int32_t>(out.expert_id), (std::vector<int32_t>{0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4}));
    for (int64_t i = 0; i < 15; ++i) EXPECT_NEAR(value_at(out.gate, i), 0.2, 1e-7);
  }
}

TEST(Router, ChoosesAsASortWould) {
  for (const auto& [E, K] : {std::pair<int64_t, int64_t>{4, 4}, {16, 1}, {37, 6}, {128, 10}}) {
    const Segments segments = Segments::whole_rows(1, 200);
    Tensor logits = random_normal({200, E}, DType::kF32, E, 2);
    for (int64_t i = 0; i < logits.numel() / 2; ++i)  // the first half with many ties
      logits.data<float>()[i] = std::round(logits.data<float>()[i]);
    const RouterOutputs out = route(logits, segments, K);
    for (int64_t n = 0; n < 200; ++n) {
      const float* p = out.prob.data<float>() + n * E;
      std::vector<int32_t> order(E);
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [p](int32_t a, int32_t b) { return p[a] > p[b]; });
      double chosen = 0;
      for (int64_t k = 0; k < K; ++k) chosen += p[order[k]];
      std::sort(order.begin(), order.begin() + K);
      for (int64_t k = 0; k < K; ++k) {
        ASSERT_EQ(out.expert_id.data<int32_t>()[n * K + k], order[k]) << "token " << n << " slot " << k;
        ASSERT_NEAR(out.gate.data<float>()[n * K + k], p[order[k]] / chosen, 1e-6);
      }
    }
  }
}

TEST(Router, IsStableForLargeLogits) {
  for (double offset : {-1e4, 1e4}) {
    Tensor logits = zeros({1, 4}, DType::kF32);
    for (int64_t e = 0; e < 4; ++e) logits.data<float>()[e] = static_cast<float>(offset + e);
    const RouterOutputs out = route(logits, Segments::whole_rows(1, 1), 2);
    EXPECT_NEAR(out.prob.data<float>()[3], 0.64391426, 1e-6);
    EXPECT_NEAR(out.lse.data<float>()[0], offset + 3.4401897, 1e-2);
  }
  Tensor logits = tensor_of<float>({0, -1e30f, 1e30f, -INFINITY}, {1, 4});
  const RouterOutputs out = route(logits, Segments::whole_rows(1, 1), 2);
  EXPECT_EQ(values_of<float>(out.prob), (std::vector<float>{0, 0, 1, 0}));
  EXPECT_EQ(values_of<int32_t>(out.expert_id), (std::vector<int32_t>{0, 2}));
  EXPECT_EQ(values_of<float>(out.gate), (std::vector<float>{0, 1}));
}

TEST(Router, NanLogitsGiveUsableIdsAndNanGates) {
  for (int64_t bad = 0; bad < 6; ++bad) {
    Tensor logits = random_normal({1, 6}, DType::kF32, 1);
    logits.data<float>()[bad] = NAN;
    const RouterOutputs out = route(logits, Segments::whole_rows(1, 1), 3);
    auto ids = values_of<int32_t>(out.expert_id);
    std::sort(ids.begin(), ids.end());
    EXPECT_TRUE(ids[0] >= 0 && ids[0] < ids[1] && ids[1] < ids[2] && ids[2] < 6);
    EXPECT_TRUE(std::isnan(out.gate.data<float>()[0]));
    EXPECT_TRUE(std::isnan(out.z_sum.data<double>()[0]));
  }
}

TEST(Router, InvalidTokensAreNeitherRoutedNorCounted) {
  Context ctx = Context::cpu();
  Segments segments = Segments::whole_rows(3, 4);
  for (int64_t n : {0, 3, 5, 8, 9, 10, 11}) segments.valid[n] = 0;  // the last row has no valid token
  Tensor logits = random_f64({12, 5}, 1);
  const RouterOutputs out = route(logits, segments, 2);
  std::vector<int64_t> counts(15);
  std::vector<double> prob_sum(15), z_sum(3);
  for (int64_t n = 0; n < 12; ++n) {
    for (int64_t k = 0; k < 2; ++k) {
      const int32_t id = out.expert_id.data<int32_t>()[n * 2 + k];
      if (segments.valid[n]) {
        ASSERT_GE(id, 0);
        ++counts[n / 4 * 5 + id];
      } else {
        EXPECT_EQ(id, -1);
        EXPECT_EQ(out.gate.data<double>()[n * 2 + k], 0);
      }
    }
    if (!segments.valid[n]) continue;
    for (int64_t e = 0; e < 5; ++e) prob_sum[n / 4 * 5 + e] += out.prob.data<double>()[n * 5 + e];
    z_sum[n / 4] += out.lse.data<double>()[n] * out.lse.data<double>()[n];
  }
  EXPECT_EQ(values_of<int64_t>(out.counts), counts);
  EXPECT_EQ(values_of<double>(out.prob_sum), prob_sum);
  // The compiler decides where a product and a sum become one rounding.
  for (int64_t b = 0; b < 3; ++b) EXPECT_DOUBLE_EQ(out.z_sum.data<double>()[b], z_sum[b]);

  Tensor d_logits = poisoned({12, 5}, DType::kF64);
  router_backward(ctx, d_logits, random_f64({12, 2}, 2), random_f64({3, 5}, 3), 0.1, out, segments, GateNorm::kTopK);
  for (int64_t i = 0; i < 60; ++i) {
    const double d = d_logits.data<double>()[i];
    if (segments.valid[i / 5]) EXPECT_TRUE(std::isfinite(d) && d != 0);
    else EXPECT_EQ(d, 0);
  }
}

TEST(RouterGradientOfBalance, IsZeroForUniformCounts) {
  Context ctx = Context::cpu();
  const Segments segments = Segments::whole_rows(1, 50);
  for (DType dtype : {DType::kF32, DType::kF64}) {
    Tensor logits = random_normal({50, 64}, dtype, 1, 2);
    const RouterOutputs out = route(logits, segments, 4);
    Tensor d_prob = zeros_f64({1, 64}), d_logits = poisoned({50, 64}, dtype);
    std::fill_n(d_prob.data<double>(), 64, 3.0);
    router_backward(ctx, d_logits, zeros({50, 4}, dtype), d_prob, 0, out, segments, GateNorm::kTopK);
    const double bound = dtype == DType::kF32 ? 1e-6 : 1e-14;
    for (int64_t i = 0; i < d_logits.numel(); ++i) ASSERT_LE(std::abs(value_at(d_logits, i)), bound);
  }
}

TEST(RouterGradientOfGatesAndBalance, SumsToZeroOverTheExperts) {
  Context ctx = Context::cpu();
  const Segments segments = Segments::whole_rows(2, 20);
  Tensor logits = random_f64({40, 16}, 1, 2), d_gate = random_f64({40, 4}, 2), d_prob = random_f64({2, 16}, 3);
  for (GateNorm norm : {GateNorm::kNone, GateNorm::kTopK}) {
    const RouterOutputs out = route(logits, segments, 4, norm);
    Tensor d_logits = poisoned({40, 16}, DType::kF64);
    router_backward(ctx, d_logits, d_gate, d_prob, 0, out, segments, norm);
    for (int64_t n = 0; n < 40; ++n) {
      const double* d = d_logits.data<double>() + n * 16;
      EXPECT_NEAR(std::accumulate(d, d + 16, 0.0), 0, 1e-14);
    }
  }
}

TEST(RouterGradientOfGates, IsExactlyZeroForExpertsThatWereNotChosen) {
  Context ctx = Context::cpu();
  const Segments segments = Segments::whole_rows(1, 1);
  Tensor logits = tensor_of<float>({0.1f, 0.9f, 0.5f, 0.3f}, {1, 4}), d_logits = poisoned({1, 4}, DType::kF32);
  const RouterOutputs out = route(logits, segments, 2);
  router_backward(ctx, d_logits, tensor_of<float>({1, -1}, {1, 2}), zeros_f64({1, 4}), 0, out, segments,
                  GateNorm::kTopK);
  EXPECT_EQ(d_logits.data<float>()[0], 0);
  EXPECT_EQ(d_logits.data<float>()[3], 0);
  EXPECT_GT(d_logits.data<float>()[1], 0);
  EXPECT_FLOAT_EQ(d_logits.data<float>()[2], -d_logits.data<float>()[1]);
}

// The sums of a row do not depend on the other rows of the batch.
TEST(Router, RowsOfABatchGiveTheBitsOfSingleRows) {
  Tensor logits = random_normal({60, 70}, DType::kF32, 1, 2);
  const RouterOutputs both = route(logits, Segments::whole_rows(2, 30), 4);
  const RouterOutputs second = route(logits.rows(30, 60), Segments::whole_rows(1, 30), 4);
  expect_same_bits(both.expert_id.rows(30, 60), second.expert_id);
  expect_same_bits(both.gate.rows(30, 60), second.gate);
  expect_same_bits(both.counts.rows(1, 2), second.counts);
  expect_same_bits(both.prob_sum.rows(1, 2), second.prob_sum);
  expect_same_bits(both.z_sum.rows(1, 2), second.z_sum);
}

TEST(Router, WithoutTokensWritesZeroSums) {
  const Segments segments{2, 0, {0}, {}};
  const RouterOutputs out = route(zeros_f64({0, 3}), segments, 2);
  EXPECT_EQ(values_of<int64_t>(out.counts), std::vector<int64_t>(6));
  EXPECT_EQ(values_of<double>(out.prob_sum), std::vector<double>(6));
  EXPECT_EQ(values_of<double>(out.z_sum), std::vector<double>(2));
}

TEST(Router, NamesTheTensorOfAWrongShapeOrDtype) {
  Context ctx = Context::cpu();
  const Segments segments = Segments::whole_rows(2, 3);
  const Tensor logits = random_f64({6, 4}, 1);
  auto message = [&](auto&& change) {
    RouterOutputs out = outputs(segments, 4, 2, DType::kF64);
    change(out);
    return message_of([&] { router_forward(ctx, out, logits, segments, GateNorm::kTopK); });
  };
  EXPECT_EQ(message([](RouterOutputs& out) {
              out.counts = zeros({3, 4}, DType::kI64);
            }),
            "counts: expected shape (2, 4), got (3, 4)");
  EXPECT_EQ(message([](RouterOutputs& out) {
              out.gate = zeros_f64({6, 3});
            }),
            "gate: expected shape (6, 2), got (6, 3)");
  EXPECT_EQ(message([](RouterOutputs& out) {
              out.prob_sum = zeros({2, 4}, DType::kF32);
            }),
            "prob_sum: expected dtype F64, got F32");
  EXPECT_EQ(message([](RouterOutputs& out) {
              out.expert_id = zeros({6, 2}, DType::kI64);
            }),
            "expert_id: expected dtype I32, got I64");
  EXPECT_EQ(message([](RouterOutputs& out) {
              out.expert_id = zeros({6, 5}, DType::kI32);
              out.gate = zeros_f64({6, 5});
            }),
            "expert_id: 5 experts per token, but prob has 4 experts");
  const RouterOutputs out = route(logits, segments, 2);
  EXPECT_EQ(message_of<ShapeError>([&] {
              router_backward(ctx, zeros_f64({6, 4}), zeros_f64({6, 2}), zeros_f64({6, 4}), 0, out, segments,
                              GateNorm::kTopK);
            }),
            "d_prob: expected shape (2, 4), got (6, 4)");
  EXPECT_THROW(router_backward(ctx, zeros_f64({6, 4}), zeros({6, 2}, DType::kF32), zeros_f64({2, 4}), 0, out, segments,
                               GateNorm::kTopK),
               DTypeError);
}

}  // namespace
}  // namespace braid
