#include "kernels/attention_inputs.h"

#include "tests/messages.h"
#include "tests/testing.h"

namespace braid {
namespace {

using namespace braid::testing;

constexpr AttentionDims kDims = {
    .query_heads = 4, .kv_heads = 2, .head_dim = 7, .rotary_dim = 4, .rope_theta = 100, .eps = 1e-6};

struct Problem {
  Segments segments;
  AttentionDims dims;
  AttentionProjections x;
  AttentionInputWeights weights;
  Tensor d_q, d_k;
  AttentionInputs out;
  AttentionProjections d_x;
  AttentionInputWeights d_weights;

  Problem(Segments s, const AttentionDims& dims, DType dtype) : segments(std::move(s)), dims(dims) {
    const int64_t N = segments.num_tokens(), Hq = dims.query_heads, Hkv = dims.kv_heads, Dh = dims.head_dim;
    x = {random_normal({N, Hq, 2, Dh}, dtype, 1), random_normal({N, Hkv, Dh}, dtype, 2)};
    weights = {random_normal({Dh}, dtype, 3, 0.3), random_normal({Dh}, dtype, 4, 0.3)};
    d_q = random_normal({N, Hq, Dh}, dtype, 5);
    d_k = random_normal({N, Hkv, Dh}, dtype, 6);
    d_weights = {random_normal({Dh}, dtype, 7), random_normal({Dh}, dtype, 8)};
    make_results();
  }
  // The tokens of one document of `whole`, as a batch of their own that adds to the same weight gradients.
  Problem(const Problem& whole, int64_t document, const AttentionInputWeights& d_weights)
      : segments(Segments::packed({whole.segments.length(document)})),
        dims(whole.dims),
        weights(whole.weights),
        d_weights(d_weights) {
    auto part = [&](const Tensor& t) { return t.rows(whole.segments.begin(document), whole.segments.end(document)); };
    x = {part(whole.x.q_gate), part(whole.x.k)};
    d_q = part(whole.d_q);
    d_k = part(whole.d_k);
    make_results();
  }

  void forward() {
    Context ctx = Context::cpu();
    attention_inputs_forward(ctx, out, x, weights, segments, dims);
  }
  void backward() {
    Context ctx = Context::cpu();
    attention_inputs_backward(ctx, d_x, d_weights, d_q, d_k, out, x, weights, segments, dims);
  }
  std::vector<Tensor> token_results() const { return {out.q, out.k, out.q_rstd, out.k_rstd, d_x.q_gate, d_x.k}; }
  std::vector<Tensor> results() const {
    std::vector<Tensor> all = token_results();
    all.insert(all.end(), {d_weights.q_norm, d_weights.k_norm});
    return all;
  }

 private:
  void make_results() {
    const DType dtype = x.k.dtype();
    const int64_t N = segments.num_tokens(), Hq = dims.query_heads, Hkv = dims.kv_heads, Dh = dims.head_dim;
    out = {poisoned({N, Hq, Dh}, dtype), poisoned({N, Hkv, Dh}, dtype), poisoned({N, Hq}, dtype),
           poisoned({N, Hkv}, dtype)};
    d_x = {zeros(x.q_gate.shape(), dtype), poisoned(x.k.shape(), dtype)};  // the gate half must stay as it is
  }
};

// One query and one key head of width 4 that need no norm: mean square 1, weight 0.
Problem unit_heads(Segments segments, int64_t rotary_dim, double theta, DType dtype) {
  Problem p(segments,
            {.query_heads = 1, .kv_heads = 1, .head_dim = 4, .rotary_dim = rotary_dim, .rope_theta = theta, .eps = 0},
            dtype);
  p.weights = {zeros({4}, dtype), zeros({4}, dtype)};
  for (int64_t i = 0; i < p.x.q_gate.numel(); ++i) {
    const double value = i % 2 == 0 ? 1 : -1;
    if (dtype == DType::kF64) p.x.q_gate.data<double>()[i] = value;
    else p.x.q_gate.data<float>()[i] = static_cast<float>(value);
  }
  return p;
}

TEST(AttentionInputs, NormalizesEveryHeadAroundOnePlusWeight) {
  Problem p(Segments::packed({1}), {.query_heads = 2, .kv_heads = 1, .head_dim = 2, .rope_theta = 10, .eps = 0.5},
            DType::kF64);
  p.x = {tensor_of<double>({3, 4, 9, 9, 5, 12, 9, 9}, {1, 2, 2, 2}), tensor_of<double>({8, 6}, {1, 1, 2})};
  p.weights = {tensor_of<double>({0, 1}, {2}), tensor_of<double>({2, 0}, {2})};
  p.forward();
  EXPECT_DOUBLE_EQ(p.out.q_rstd.data<double>()[0], 1 / std::sqrt(13));
  EXPECT_DOUBLE_EQ(p.out.q.data<double>()[1], 4 * 2 / std::sqrt(13));
  EXPECT_DOUBLE_EQ(p.out.q.data<double>()[2], 5 / std::sqrt(85));
  EXPECT_DOUBLE_EQ(p.out.k.data<double>()[0], 8 * 3 / std::sqrt(50.5));
  EXPECT_DOUBLE_EQ(p.out.k_rstd.data<double>()[0], 1 / std::sqrt(50.5));
}

TEST(AttentionInputs, RotatesHalfSplitPairsByPositionTimesFrequency) {
  // Pairs (0, 2) and (1, 3) with frequencies 1 and 1 / sqrt(16); x = (1, -1, 1, -1)
  Problem p = unit_heads(Segments::packed({3}), 4, 16, DType::kF64);
  p.forward();
  for (int64_t t = 0; t < 3; ++t) {
    const double* q = p.out.q.data<double>() + 4 * t;
    EXPECT_NEAR(q[0], std::cos(t) - std::sin(t), 1e-15);
    EXPECT_NEAR(q[2], std::cos(t) + std::sin(t), 1e-15);
    EXPECT_NEAR(q[1], -std::cos(t / 4.0) + std::sin(t / 4.0), 1e-15);
    EXPECT_NEAR(q[3], -std::cos(t / 4.0) - std::sin(t / 4.0), 1e-15);
  }
}

TEST(AttentionInputs, PassesTheOtherDimensionsAndRestartsAtDocuments) {
  Problem p = unit_heads(Segments::packed({2, 3, 1}), 2, 1e4, DType::kF64);
  p.forward();
  for (int64_t n : {0, 2, 5})  // first tokens: no rotation
    for (int64_t d = 0; d < 4; ++d) EXPECT_EQ(p.out.q.data<double>()[4 * n + d], d % 2 == 0 ? 1 : -1);
  for (int64_t n : {1, 3, 4}) {
    const double* q = p.out.q.data<double>() + 4 * n;
    EXPECT_NEAR(q[0], std::cos(n == 4 ? 2 : 1) + std::sin(n == 4 ? 2 : 1), 1e-15);
    EXPECT_EQ(q[2], 1);
    EXPECT_EQ(q[3], -1);
  }
}

TEST(AttentionInputs, RotationPreservesTheLength) {
  Problem p(Segments::packed({300}), kDims, DType::kF64);
  p.forward();
  for (int64_t i = 0; i < 300 * kDims.query_heads; ++i) {
    double before = 0, after = 0;
    for (int64_t d = 0; d < 7; ++d) {
      const double normed = p.x.q_gate.data<double>()[14 * i + d] * p.out.q_rstd.data<double>()[i] *
                            (1 + p.weights.q_norm.data<double>()[d]);
      before += normed * normed;
      after += p.out.q.data<double>()[7 * i + d] * p.out.q.data<double>()[7 * i + d];
    }
    EXPECT_NEAR(after, before, 1e-13 * before);
  }
}

TEST(AttentionInputs, RoundsAnglesToTheDtypeAsTorchDoes) {
  // The second frequency is 10^-0.5. In fp32 it is rounded before it is multiplied by the position.
  constexpr int64_t kTokens = 8000;
  Problem single = unit_heads(Segments::packed({kTokens}), 4, 10, DType::kF32);
  Problem exact = unit_heads(Segments::packed({kTokens}), 4, 10, DType::kF64);
  single.forward();
  exact.forward();
  int64_t num_rounded_differently = 0;
  for (int64_t t = 0; t < kTokens; ++t) {
    const double angle_f64 = t * (1 / std::sqrt(10.0));
    const float angle_f32 = static_cast<float>(t) * (1.0f / std::pow(10.0f, 0.5f));
    num_rounded_differently += angle_f32 != static_cast<float>(angle_f64);
    EXPECT_NEAR(value_at(single.out.q, 4 * t + 1), -std::cos(double(angle_f32)) + std::sin(double(angle_f32)), 3e-7);
    EXPECT_NEAR(value_at(exact.out.q, 4 * t + 1), -std::cos(angle_f64) + std::sin(angle_f64), 1e-12);
  }
  EXPECT_GT(num_rounded_differently, 10);
}

TEST(AttentionInputs, LeavesTheGateHalfAlone) {
  Problem p(Segments::packed({3}), kDims, DType::kF32);
  auto fill_gates = [](Tensor t, float value) {
    for (int64_t i = 0; i < t.numel() / 14; ++i) std::fill_n(t.data<float>() + 14 * i + 7, 7, value);
  };
  fill_gates(p.x.q_gate, std::nanf(""));
  fill_gates(p.d_x.q_gate, 42);
  p.forward();
  p.backward();
  for (int64_t i = 0; i < p.out.q.numel(); ++i) EXPECT_TRUE(std::isfinite(p.out.q.data<float>()[i]));
  for (int64_t i = 0; i < p.d_x.q_gate.numel(); ++i) {
    if (i % 14 < 7) EXPECT_TRUE(std::isfinite(p.d_x.q_gate.data<float>()[i]));
    else EXPECT_EQ(p.d_x.q_gate.data<float>()[i], 42);
  }
}

TEST(AttentionInputs, PackedDocumentsGiveTheSameBitsAsSeparateOnes) {
  for (DType dtype : {DType::kF32, DType::kF64}) {
    for (int64_t head_dim : {7, 16}) {
      AttentionDims dims = kDims;
      dims.head_dim = head_dim;
      Problem packed(Segments::packed({1, 63, 64, 65, 2, 200}), dims, dtype);
      const AttentionInputWeights d_weights = {copy_of(packed.d_weights.q_norm), copy_of(packed.d_weights.k_norm)};
      packed.forward();
      packed.backward();
      const std::vector<Tensor> results = packed.token_results();
      for (int64_t document = 0; document < packed.segments.num_documents(); ++document) {
        Problem alone(packed, document, d_weights);
        alone.forward();
        alone.backward();
        const std::vector<Tensor> expected = alone.token_results();
        for (size_t i = 0; i < results.size(); ++i)
          expect_same_bits(results[i].rows(packed.segments.begin(document), packed.segments.end(document)), expected[i],
                           concat("result ", i, " of document ", document).c_str());
      }
      expect_same_bits(packed.d_weights.q_norm, d_weights.q_norm, "d_q_norm");
      expect_same_bits(packed.d_weights.k_norm, d_weights.k_norm, "d_k_norm");
    }
  }
}

TEST(AttentionInputs, NamesTheTensorOfAWrongShapeOrDtype) {
  auto message = [](auto&& change, bool backward = false) {
    Problem p(Segments::packed({2, 3}), kDims, DType::kF64);
    change(p);
    return message_of([&] { backward ? p.backward() : p.forward(); });
  };
  EXPECT_EQ(message([](Problem&) {}), "");
  EXPECT_EQ(message([](Problem& p) {
              p.x.q_gate = zeros_f64({5, 4, 7});
            }),
            "x.q_gate: expected shape (5, 4, 2, 7), got (5, 4, 7)");
  EXPECT_EQ(message([](Problem& p) { p.segments = Segments::packed({4}); }),
            "x.q_gate: expected shape (4, 4, 2, 7), got (5, 4, 2, 7)");
  EXPECT_EQ(message([](Problem& p) { p.weights.k_norm = zeros_f64({8}); }),
            "weights.k_norm: expected shape (7), got (8)");
  EXPECT_EQ(message([](Problem& p) { p.out.k_rstd = zeros_f64({5, 4}); }), "k_rstd: expected shape (5, 2), got (5, 4)");
  EXPECT_EQ(message([](Problem& p) { p.out.q = zeros({5, 4, 7}, DType::kF32); }), "q: expected dtype F64, got F32");
  EXPECT_EQ(message([](Problem& p) { p.dims.rotary_dim = 5; }), "rotary_dim: expected an even number up to 7, got 5");
  EXPECT_EQ(message([](Problem& p) { p.dims.rotary_dim = 8; }), "rotary_dim: expected an even number up to 7, got 8");
  EXPECT_EQ(message([](Problem& p) { p.d_weights.q_norm = zeros_f64({6}); }, true),
            "d_weights.q_norm: expected shape (7), got (6)");
  EXPECT_EQ(message(
                [](Problem& p) {
                  p.d_q = zeros({5, 4, 7}, DType::kF32);
                },
                true),
            "d_q: expected dtype F64, got F32");
}

}  // namespace
}  // namespace braid
