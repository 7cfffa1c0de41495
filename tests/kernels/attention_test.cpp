#include "kernels/attention.h"

#include <limits>

#include "tests/messages.h"
#include "tests/testing.h"

namespace braid {
namespace {

using namespace braid::testing;

struct Sizes {
  int64_t Hq, Hkv, Dh;
};

// One call of attention and of its backward; gradients start as NaN where they must be overwritten.
struct Problem {
  Segments segments;
  AttentionTensors in;
  Tensor d_y;
  AttentionOutputs out;
  AttentionGradients d_in;

  Problem(Segments s, Sizes sizes, DType dtype) : segments(std::move(s)) {
    const auto [Hq, Hkv, Dh] = sizes;
    const int64_t N = segments.num_tokens();
    in = {random_normal({N, Hq, Dh}, dtype, 1), random_normal({N, Hkv, Dh}, dtype, 2),
          random_normal({N, Hkv, Dh}, dtype, 3), random_normal({N, Hq, 2, Dh}, dtype, 4)};
    d_y = random_normal({N, Hq, Dh}, dtype, 5);
    make_results();
  }
  // The tokens of one document of `whole`, as a batch of their own.
  Problem(const Problem& whole, int64_t document) : segments(Segments::packed({whole.segments.length(document)})) {
    auto part = [&](const Tensor& t) { return t.rows(whole.segments.begin(document), whole.segments.end(document)); };
    in = {part(whole.in.q), part(whole.in.k), part(whole.in.v), part(whole.in.q_gate)};
    d_y = part(whole.d_y);
    make_results();
  }

  void forward() {
    Context ctx = Context::cpu();
    attention_forward(ctx, out, in, segments);
  }
  void backward() {
    Context ctx = Context::cpu();
    attention_backward(ctx, d_in, d_y, in, out, segments);
  }
  double loss() {
    forward();
    return dot(out.y, d_y);
  }
  std::vector<Tensor> results() const { return {out.y, out.o, out.lse, d_in.q, d_in.k, d_in.v, d_in.q_gate}; }

 private:
  void make_results() {
    const DType dtype = in.q.dtype();
    out = {poisoned(in.q.shape(), dtype), poisoned(in.q.shape(), dtype), poisoned({in.q.dim(0), in.q.dim(1)}, dtype)};
    d_in = {poisoned(in.q.shape(), dtype), poisoned(in.k.shape(), dtype), poisoned(in.k.shape(), dtype),
            zeros(in.q_gate.shape(), dtype)};  // the query half must stay as it is
  }
};

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// Attention and its gradients with whole score rows, in double, for inputs of any dtype.
struct Naive {
  Tensor y, o, lse, d_q, d_k, d_v, d_q_gate;
  double score_max = -std::numeric_limits<double>::infinity(), first_token_share = 0;

  explicit Naive(const Problem& p) {
    const int64_t Hq = p.in.q.dim(1), Hkv = p.in.k.dim(1), Dh = p.in.q.dim(2);
    d_q = zeros_f64(p.in.q.shape());
    y = zeros_f64(p.in.q.shape());
    o = zeros_f64(p.in.q.shape());
    lse = zeros_f64({p.in.q.dim(0), Hq});
    d_k = zeros_f64(p.in.k.shape());
    d_v = zeros_f64(p.in.k.shape());
    d_q_gate = zeros_f64(p.in.q_gate.shape());
    const double scale = 1 / std::sqrt(double(Dh));
    const Tensor q = converted(p.in.q, DType::kF64), k = converted(p.in.k, DType::kF64);
    const Tensor v = converted(p.in.v, DType::kF64), gate = converted(p.in.q_gate, DType::kF64);
    const Tensor d_y = converted(p.d_y, DType::kF64);
    auto row = [Dh]<class Any>(Any& t, int64_t at) { return t.template data<double>() + at * Dh; };
    auto product = [Dh](const double* a, const double* b) {
      double sum = 0;
      for (int64_t d = 0; d < Dh; ++d) sum += a[d] * b[d];
      return sum;
    };
    for (int64_t document = 0; document < p.segments.num_documents(); ++document) {
      for (int64_t n = p.segments.begin(document); n < p.segments.end(document); ++n) {
        for (int64_t h = 0; h < Hq; ++h) {
          const int64_t first = p.segments.begin(document), kv = h / (Hq / Hkv), at = n * Hq + h;
          std::vector<double> prob(n - first + 1), d_o(Dh);
          double highest = -std::numeric_limits<double>::infinity(), sum = 0, delta = 0;
          for (int64_t j = first; j <= n; ++j) {
            prob[j - first] = scale * product(row(q, at), row(k, j * Hkv + kv));
            highest = std::max(highest, prob[j - first]);
          }
          for (double& s : prob) sum += s = std::exp(s - highest);
          lse.data<double>()[at] = highest + std::log(sum);
          score_max = std::max(score_max, highest);
          for (int64_t j = first; j <= n; ++j)
            for (int64_t d = 0; d < Dh; ++d)
              row(o, at)[d] += (prob[j - first] /= d == 0 ? sum : 1) * row(v, j * Hkv + kv)[d];
          for (int64_t d = 0; d < Dh; ++d) {
            const double open = sigmoid(row(gate, 2 * at + 1)[d]);
            if (d == 0 && p.segments.valid[n]) first_token_share += prob[0] / double(Hq);
            row(y, at)[d] = row(o, at)[d] * open;
            d_o[d] = row(d_y, at)[d] * open;
            row(d_q_gate, 2 * at + 1)[d] = row(d_y, at)[d] * row(o, at)[d] * open * (1 - open);
            delta += d_o[d] * row(o, at)[d];
          }
          for (int64_t j = first; j <= n; ++j) {
            const double P = prob[j - first], d_score = P * (product(d_o.data(), row(v, j * Hkv + kv)) - delta) * scale;
            for (int64_t d = 0; d < Dh; ++d) {
              row(d_v, j * Hkv + kv)[d] += P * d_o[d];
              row(d_k, j * Hkv + kv)[d] += d_score * row(q, at)[d];
              row(d_q, at)[d] += d_score * row(k, j * Hkv + kv)[d];
            }
          }
        }
      }
    }
  }
};

void expect_equals_naive(Problem p, double forward_tolerance, double backward_tolerance) {
  p.out.score_max = poisoned({1}, DType::kF64);
  p.out.first_token_share = poisoned({1}, DType::kF64);
  p.segments.valid[0] = 0;
  p.forward();
  p.backward();
  const Naive expected(p);
  expect_close(p.out.y, expected.y, forward_tolerance, "y");
  expect_close(p.out.o, expected.o, forward_tolerance, "o");
  expect_close(p.out.lse, expected.lse, forward_tolerance, "lse");
  EXPECT_NEAR(p.out.score_max.data<double>()[0], expected.score_max, forward_tolerance * std::abs(expected.score_max));
  EXPECT_NEAR(p.out.first_token_share.data<double>()[0], expected.first_token_share,
              forward_tolerance * expected.first_token_share);
  expect_close(p.d_in.q, expected.d_q, backward_tolerance, "d_q");
  expect_close(p.d_in.k, expected.d_k, backward_tolerance, "d_k");
  expect_close(p.d_in.v, expected.d_v, backward_tolerance, "d_v");
  expect_close(p.d_in.q_gate, expected.d_q_gate, backward_tolerance, "d_q_gate");
}

// Below, at and above the sizes of the tiles of queries and of keys.
const std::vector<int64_t> kLengths = {1, 31, 32, 33, 2, 65, 255, 256, 257, 300};

TEST(Attention, OneTokenCopiesItsValueThroughTheGate) {
  Problem p(Segments::packed({1, 1}), {2, 1, 2}, DType::kF64);
  p.in.q = tensor_of<double>({1, 2, 3, 4, 5, 6, 7, 8}, {2, 2, 2});
  p.in.k = tensor_of<double>({1, 1, 2, -1}, {2, 1, 2});
  p.in.v = tensor_of<double>({10, 20, 30, 40}, {2, 1, 2});
  std::fill_n(p.in.q_gate.data<double>(), p.in.q_gate.numel(), std::log(3.0));
  p.forward();
  for (int64_t h = 0; h < 2; ++h) {
    EXPECT_DOUBLE_EQ(p.out.o.data<double>()[h * 2], 10);
    EXPECT_DOUBLE_EQ(p.out.o.data<double>()[4 + h * 2 + 1], 40);
    EXPECT_DOUBLE_EQ(p.out.y.data<double>()[4 + h * 2], 30 * 0.75);
  }
  EXPECT_DOUBLE_EQ(p.out.lse.data<double>()[0], 3 / std::sqrt(2.0));
  EXPECT_DOUBLE_EQ(p.out.lse.data<double>()[3], 6 / std::sqrt(2.0));
}

TEST(Attention, EqualKeysAverageTheValuesSoFar) {
  Problem p(Segments::packed({40}), {1, 1, 1}, DType::kF64);
  for (int64_t n = 0; n < 40; ++n) {
    p.in.k.data<double>()[n] = 7;
    p.in.v.data<double>()[n] = n;
  }
  p.forward();
  for (int64_t n = 0; n < 40; ++n) EXPECT_NEAR(p.out.o.data<double>()[n], n / 2.0, 1e-13);
}

TEST(Attention, EqualsWholeScoreRowsInDouble) {
  expect_equals_naive(Problem(Segments::packed(kLengths), {6, 2, 5}, DType::kF64), 1e-14, 1e-13);
  expect_equals_naive(Problem(Segments::packed({270, 3}), {3, 3, 8}, DType::kF64), 1e-14, 1e-13);
  expect_equals_naive(Problem(Segments::whole_rows(2, 70), {4, 1, 16}, DType::kF64), 1e-14, 1e-13);
}

TEST(Attention, StaysCloseToDoubleInSinglePrecision) {
  expect_equals_naive(Problem(Segments::packed(kLengths), {6, 2, 5}, DType::kF32), 1e-6, 2e-6);
  expect_equals_naive(Problem(Segments::packed({600}), {2, 1, 64}, DType::kF32), 1e-6, 2e-6);
}

TEST(Attention, LeavesTheQueryHalfOfTheGateAlone) {
  Problem p(Segments::packed({34}), {2, 1, 3}, DType::kF32);
  auto fill_queries = [](Tensor t, float value) {
    for (int64_t i = 0; i < t.numel() / 6; ++i) std::fill_n(t.data<float>() + 6 * i, 3, value);
  };
  fill_queries(p.in.q_gate, std::numeric_limits<float>::quiet_NaN());
  fill_queries(p.d_in.q_gate, 42);
  p.forward();
  p.backward();
  for (int64_t i = 0; i < p.d_in.q_gate.numel() / 6; ++i) {
    for (int64_t d = 0; d < 3; ++d) EXPECT_EQ(p.d_in.q_gate.data<float>()[6 * i + d], 42);
    for (int64_t d = 3; d < 6; ++d) EXPECT_TRUE(std::isfinite(p.d_in.q_gate.data<float>()[6 * i + d]));
  }
}

TEST(Attention, WithoutAGateIsAttentionThroughAnOpenOne) {
  for (DType dtype : {DType::kF32, DType::kF64}) {
    Problem open(Segments::packed(kLengths), {6, 2, 5}, dtype);
    for (int64_t i = 0; i < open.in.q_gate.numel(); ++i) {
      if (dtype == DType::kF64) open.in.q_gate.data<double>()[i] = 100;
      else open.in.q_gate.data<float>()[i] = 100;
    }
    Problem without = open;
    open.forward();
    open.backward();
    const std::vector<Tensor> expected = open.results();
    const Tensor gate = std::exchange(without.in.q_gate, Tensor());
    for (Tensor* t : {&without.out.o, &without.out.lse, &without.d_in.q, &without.d_in.k, &without.d_in.v})
      *t = poisoned(t->shape(), dtype);
    without.out.y = without.out.o;
    without.d_in.q_gate = Tensor();
    without.forward();
    without.backward();
    const std::vector<Tensor> results = without.results();
    for (size_t i = 0; i + 1 < results.size(); ++i)
      expect_same_bits(results[i], expected[i], concat("result ", i).c_str());
  }
}

TEST(Attention, DoesNotSeeTheFuture) {
  Problem p(Segments::packed({300}), {2, 1, 4}, DType::kF32);
  p.forward();
  const Tensor y = copy_of(p.out.y);
  for (int64_t changed : {299, 290, 200}) {
    p.in.k.rows(changed, 300).data<float>()[0] = 1e4f;
    p.in.v.rows(changed, 300).data<float>()[0] = 1e4f;
    p.forward();
    expect_same_bits(p.out.y.rows(0, changed), y.rows(0, changed));
    EXPECT_NE(p.out.y.data<float>()[changed * 8], y.data<float>()[changed * 8]);
  }
}

TEST(Attention, HugeScoresStayFinite) {
  for (DType dtype : {DType::kF32, DType::kF64}) {
    Problem p(Segments::packed({280, 1}), {2, 1, 4}, dtype);
    p.in.q = random_normal({281, 2, 4}, dtype, 7, 100);
    p.in.k = random_normal({281, 1, 4}, dtype, 8, 100);
    p.forward();
    p.backward();
    const Naive expected(p);
    expect_close(p.out.y, expected.y, dtype == DType::kF64 ? 1e-11 : 1e-2);
    for (const Tensor& t : p.results())
      for (int64_t i = 0; i < t.numel(); ++i) ASSERT_TRUE(std::isfinite(value_at(t, i)));
  }
}

TEST(Attention, PackedDocumentsGiveTheSameBitsAsSeparateOnes) {
  for (DType dtype : {DType::kF32, DType::kF64}) {
    for (int64_t Dh : {5, 16}) {
      Problem packed(Segments::packed(kLengths), {6, 2, Dh}, dtype);
      packed.forward();
      packed.backward();
      const std::vector<Tensor> results = packed.results();
      for (int64_t document = 0; document < packed.segments.num_documents(); ++document) {
        Problem alone(packed, document);
        alone.forward();
        alone.backward();
        const std::vector<Tensor> expected = alone.results();
        for (size_t i = 0; i < results.size(); ++i)
          expect_same_bits(results[i].rows(packed.segments.begin(document), packed.segments.end(document)), expected[i],
                           concat("result ", i, " of document ", document).c_str());
      }
    }
  }
}

TEST(Attention, NamesTheTensorOfAWrongShapeOrDtype) {
  auto message = [](auto&& change, bool backward = false) {
    Problem p(Segments::packed({2, 3}), {4, 2, 8}, DType::kF64);
    change(p);
    return message_of([&] { backward ? p.backward() : p.forward(); });
  };
  EXPECT_EQ(message([](Problem&) {}), "");
  EXPECT_EQ(message([](Problem& p) { p.segments = Segments::packed({6}); }),
            "q: expected shape (6, 4, 8), got (5, 4, 8)");
  EXPECT_EQ(message([](Problem& p) { p.in.v = zeros_f64({5, 1, 8}); }), "v: expected shape (5, 2, 8), got (5, 1, 8)");
  EXPECT_EQ(message([](Problem& p) {
              p.in.q_gate = zeros_f64({5, 4, 8});
            }),
            "q_gate: expected shape (5, 4, 2, 8), got (5, 4, 8)");
  EXPECT_EQ(message([](Problem& p) { p.out.lse = zeros_f64({5}); }), "lse: expected shape (5, 4), got (5)");
  EXPECT_EQ(message([](Problem& p) {
              p.in.k = p.in.v = zeros_f64({5, 3, 8});
            }),
            "q: 4 heads are not a multiple of the 3 heads of k");
  EXPECT_EQ(message([](Problem& p) { p.in.k = zeros({5, 2, 8}, DType::kF32); }), "k: expected dtype F64, got F32");
  EXPECT_EQ(message(
                [](Problem& p) {
                  p.d_in.v = zeros_f64({5, 4, 8});
                },
                true),
            "d_v: expected shape (5, 2, 8), got (5, 4, 8)");
  EXPECT_EQ(message(
                [](Problem& p) {
                  p.d_y = zeros({5, 4, 8}, DType::kF32);
                },
                true),
            "d_y: expected dtype F64, got F32");
}

}  // namespace
}  // namespace braid
