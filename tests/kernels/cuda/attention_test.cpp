#include "kernels/attention.h"

#include <limits>
#include <numeric>

#include "kernels/build_config.h"
#include "kernels/cuda/attention_backends.h"
#include "tests/kernels/cuda/cuda_testing.h"

namespace braid {
namespace {

using namespace braid::testing;

struct Sizes {
  int64_t Hq, Hkv, Dh;
};

class AttentionCuda : public CudaTest {
 protected:
  struct Problem {  // fp64, on the CPU
    Segments segments;
    AttentionTensors in;
    Tensor d_y;
  };
  static Problem problem(Segments segments, Sizes sizes, double stddev = 1) {
    const auto [Hq, Hkv, Dh] = sizes;
    const int64_t N = segments.num_tokens();
    const int64_t M = std::accumulate(segments.tokens_before.begin(), segments.tokens_before.end(), N);
    return {std::move(segments),
            {rounded(random_f64({N, Hq, Dh}, 1, stddev)), rounded(random_f64({M, Hkv, Dh}, 2, stddev)),
             rounded(random_f64({M, Hkv, Dh}, 3)), rounded(random_f64({N, Hq, 2, Dh}, 4))},
            rounded(random_f64({N, Hq, Dh}, 5))};
  }

  struct Results {
    AttentionOutputs out;
    AttentionGradients d_in;
    std::vector<Tensor> all() const { return {out.y, out.o, out.lse, d_in.q, d_in.k, d_in.v, d_in.q_gate}; }
  };
  Results run_on_cpu(const Problem& p) {
    Results r = {{zeros_f64(p.in.q.shape()), zeros_f64(p.in.q.shape()), zeros_f64({p.in.q.dim(0), p.in.q.dim(1)})},
                 {zeros_f64(p.in.q.shape()), zeros_f64(p.in.k.shape()), zeros_f64(p.in.k.shape()),
                  zeros_f64(p.in.q_gate.shape())}};
    attention_forward(cpu, r.out, p.in, p.segments);
    attention_backward(cpu, r.d_in, p.d_y, p.in, r.out, p.segments);
    return r;
  }

  // The operator as it chooses for itself, or with the softmax part done by one of the own kernels; kFp32 leaves y as
  // the operator chose. kHopper has a backward only; before it comes the forward of kTensorCores.
  enum class By { kChoice, kTensorCores, kHopper, kFp32 };
  bool serves(By by, const Problem& p) {
    if (by == By::kTensorCores) return cuda::mma_attention_supports(gpu, inputs_on_gpu(p));
    return by != By::kHopper || cuda::wgmma_attention_supports(gpu, inputs_on_gpu(p));
  }
  AttentionTensors inputs_on_gpu(const Problem& p) {
    return {to_gpu(p.in.q, activation()), to_gpu(p.in.k, activation()), to_gpu(p.in.v, activation()),
            to_gpu(p.in.q_gate, activation())};
  }
  Results run_on_gpu(const Problem& p, By by = By::kChoice, int64_t most_score_bytes = cuda::kByLength) {
    const Segments segments = to_gpu(p.segments);
    const AttentionTensors in = inputs_on_gpu(p);
    const Tensor d_y = to_gpu(p.d_y, activation());
    const Shape q = p.in.q.shape(), k = p.in.k.shape(), rows = {q[0], q[1]};
    Results r = {{on_gpu(q, activation()), on_gpu(q, activation()), on_gpu(rows, wide())},
                 {on_gpu(q, activation()), on_gpu(k, activation()), on_gpu(k, activation()),
                  to_gpu(zeros_f64(p.in.q_gate.shape()), activation())}};  // the query half must stay as it is
    attention_forward(gpu, r.out, in, segments);
    if (by == By::kTensorCores || by == By::kHopper) cuda::mma_attention_forward(gpu, r.out, in, segments);
    if (by == By::kFp32) cuda::fma_attention_forward(gpu, r.out, in, segments);
    attention_backward(gpu, r.d_in, d_y, in, r.out, segments);
    if (by == By::kChoice) return r;
    const cuda::AttentionOutputGradient d_out = output_gradient(p, r.out);
    if (by == By::kTensorCores) cuda::mma_attention_backward(gpu, r.d_in, d_out, in, r.out, segments);
    else if (by == By::kHopper)
      cuda::wgmma_attention_backward(gpu, r.d_in, d_out, in, r.out, segments, most_score_bytes);
    else cuda::fma_attention_backward(gpu, r.d_in, d_out, in, r.out, segments);
    return r;
  }

  void expect_equals_cpu(const Problem& p, By by = By::kChoice) {
    const Results expected = run_on_cpu(p), actual = run_on_gpu(p, by);
    const bool is_bf16 = activation() == DType::kBF16;
    if (by != By::kFp32) expect_matches(actual.out.y, expected.out.y, "y");
    expect_matches(actual.out.o, expected.out.o, "o");
    expect_matches(actual.out.lse, expected.out.lse, "lse", {5e-6, 1e-4});  // fp32 sums of what both sides read
    expect_matches(actual.d_in.v, expected.d_in.v, "d_v");
    expect_matches(actual.d_in.q_gate, expected.d_in.q_gate, "d_q_gate",
                   is_bf16 ? Tolerance{1e-2, 1e-1, 0x1p-7} : tolerance());
    // In bf16, o is rounded before delta = sum of d_o * o is formed, and d_o before its products: d_score is the small
    // difference of two numbers that carry these errors, and is rounded itself.
    const Tolerance of_scores = is_bf16 ? Tolerance{1.5e-2, 1.5e-1, 0x1p-7} : tolerance();
    expect_score_gradient(actual.d_in.q, expected.d_in.q, "d_q", of_scores);
    expect_score_gradient(actual.d_in.k, expected.d_in.k, "d_k", of_scores);
  }
  // Where every document is one token, nothing depends on scores: the gradient is what rounding leaves of 0.
  static void expect_score_gradient(const Tensor& actual, const Tensor& expected, const char* what,
                                    Tolerance tolerance) {
    if (dot(expected, expected) > 1e-20) return expect_matches(actual, expected, what, tolerance);
    const Tensor host = to_cpu(actual);
    for (int64_t i = 0; i < host.numel(); ++i) ASSERT_NEAR(value_at(host, i), 0, 1e-4) << what;
  }
  static Tolerance tolerance() { return tolerance_of(activation()); }

  static bool runs_in_cudnn(const std::string& implementation) { return implementation == "cuDNN"; }

 private:
  // What attention_backward hands to its kernels, formed on the host from the outputs on the GPU.
  cuda::AttentionOutputGradient output_gradient(const Problem& p, const AttentionOutputs& out) {
    const int64_t rows = p.in.q.dim(0) * p.in.q.dim(1), Dh = p.in.q.dim(2);
    const Tensor o = to_cpu(out.o);
    Tensor d_o = zeros_f64(p.in.q.shape()), delta = zeros_f64({p.in.q.dim(0), p.in.q.dim(1)});
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t d = 0; d < Dh; ++d) {
        const double gate = p.in.q_gate.data<double>()[(2 * row + 1) * Dh + d];
        const double exact = p.d_y.data<double>()[row * Dh + d] / (1 + std::exp(-gate));
        const double g = activation() == DType::kBF16 ? double(float(BFloat16(float(exact)))) : exact;
        d_o.data<double>()[row * Dh + d] = g;
        delta.data<double>()[row] += g * o.data<double>()[row * Dh + d];
      }
    }
    return {to_gpu(d_o, activation()), to_gpu(delta, DType::kF32)};
  }
};
BRAID_FOR_EACH_ACTIVATION(AttentionCuda);

// Rows of which the first document goes on from before them, and the last, for all that attention knows, ends.
Segments going_on(std::vector<int64_t> offsets, std::vector<int64_t> before) {
  Segments rows = Segments::whole_rows(std::ssize(before), offsets.back() / std::ssize(before));
  rows.offsets = std::move(offsets);
  rows.tokens_before = std::move(before);
  return rows;
}

// Below, at and above the sizes of tiles.
const std::vector<int64_t> kLengths = {1, 31, 32, 33, 2, 65, 63, 64, 128, 1, 1, 1, 200};

// Every kernel over two tiles and a part of one, small enough for tools that look at each access.
TEST_P(AttentionCuda, FewTiles) {
  for (Sizes sizes : {Sizes{2, 1, 256}, {2, 2, 16}}) {
    const Problem p = problem(Segments::packed({70, 1, 33}), sizes);
    for (By by : {By::kChoice, By::kTensorCores, By::kHopper, By::kFp32})
      if (serves(by, p)) expect_equals_cpu(p, by);
  }
}

TEST_P(AttentionCuda, OwnKernels) {
  const Sizes real = {16, 2, 256}, small = {4, 2, 48}, between = {3, 3, 144};
  for (const Segments& segments :
       {Segments::packed(kLengths), Segments::whole_rows(2, 256), Segments::packed({1, 1, 1, 1}),
        going_on({0, 130, 190, 260, 320, 390}, {200, 0, 70})}) {
    SCOPED_TRACE(concat(segments.num_documents(), " documents in ", segments.num_rows, " rows"));
    for (Sizes sizes : {real, small, between})
      for (By by : {By::kFp32, By::kTensorCores, By::kHopper})
        if (serves(by, problem(Segments::packed({1}), sizes))) expect_equals_cpu(problem(segments, sizes), by);
  }
}

// Large scores: every row of probabilities is nearly one-hot, and exponents without the running maximum would overflow.
TEST_P(AttentionCuda, HugeScoresStayFinite) {
  const Problem p = problem(Segments::packed({150, 1, 77}), {4, 2, 256}, 30);
  const Results expected = run_on_cpu(p);
  for (By by : {By::kChoice, By::kTensorCores, By::kHopper, By::kFp32}) {
    if (!serves(by, p)) continue;
    const Results r = run_on_gpu(p, by);
    for (const Tensor& t : r.all()) {
      const Tensor host = to_cpu(t);
      for (int64_t i = 0; i < host.numel(); ++i) ASSERT_TRUE(std::isfinite(value_at(host, i)));
    }
    // Scores of up to 4000 in fp32 sums are off by up to 1e-3, and so are the probabilities.
    expect_matches(r.out.o, expected.out.o, "o", activation() == DType::kBF16 ? tolerance() : Tolerance{1e-3, 2e-2});
    expect_matches(r.out.lse, expected.out.lse, "lse", {1e-6, 1e-5});
  }
}

TEST_P(AttentionCuda, DoesNotSeeTheFutureOrOtherDocuments) {
  Problem p = problem(Segments::packed({100, 90}), {2, 1, 64});
  for (By by : {By::kChoice, By::kFp32}) {
    const Tensor o = to_cpu(run_on_gpu(p, by).out.o);
    Problem changed = p;
    changed.in.k = copy_of(p.in.k);
    changed.in.v = copy_of(p.in.v);
    for (int64_t n = 70; n < 100; ++n) {
      changed.in.k.data<double>()[n * 64] = 100;
      changed.in.v.data<double>()[n * 64] = 100;
    }
    const Tensor after = to_cpu(run_on_gpu(changed, by).out.o);
    expect_same_bits(after.rows(0, 70), o.rows(0, 70), "before");
    expect_same_bits(after.rows(100, 190), o.rows(100, 190), "the other document");
    EXPECT_NE(value_at(after, 70 * 128), value_at(o, 70 * 128));
  }
}

TEST_P(AttentionCuda, PackedDocumentsGiveTheSameBitsAsSeparateOnesInOwnKernels) {
  for (By by : {By::kTensorCores, By::kHopper, By::kFp32}) {
    const Problem packed = problem(Segments::packed(kLengths), {4, 2, 256});
    if (!serves(by, packed)) continue;
    std::vector<Tensor> whole;
    for (const Tensor& t : run_on_gpu(packed, by).all()) whole.push_back(to_cpu(t));
    for (int64_t d = 0; d < packed.segments.num_documents(); ++d) {
      const int64_t begin = packed.segments.begin(d), end = packed.segments.end(d);
      Problem alone = packed;
      alone.segments = Segments::packed({end - begin});
      for (Tensor* t : {&alone.in.q, &alone.in.k, &alone.in.v, &alone.in.q_gate, &alone.d_y}) *t = t->rows(begin, end);
      const std::vector<Tensor> one = run_on_gpu(alone, by).all();
      for (size_t i = by == By::kFp32; i < one.size(); ++i)  // kFp32 does not form y, the first of them
        expect_same_bits(to_cpu(one[i]), whole[i].rows(begin, end), concat("result ", i, ", document ", d).c_str());
    }
  }
}

TEST_P(AttentionCuda, SameBitsEveryTime) {
  for (const Segments& segments : {Segments::packed({700, 1, 323}), Segments::whole_rows(2, 512)}) {
    const Problem p = problem(segments, {16, 2, 256});
    for (By by : {By::kChoice, By::kTensorCores, By::kHopper, By::kFp32})
      if (serves(by, p)) expect_same_bits_every_time([&] { return run_on_gpu(p, by).all(); });
  }
}

// A stripe of one row of tiles, of a few, and one that holds everything.
TEST_P(AttentionCuda, StripesOfScoresDoNotChangeBits) {
  for (const Segments& segments : {Segments::packed({700, 1, 323, 64, 65}), Segments::whole_rows(2, 512),
                                   going_on({0, 200, 300, 500, 600}, {500, 129}), going_on({0, 128, 256}, {0, 128})}) {
    const Problem p = problem(segments, {4, 2, 256});
    if (!serves(By::kHopper, p)) GTEST_SKIP() << "the kernel does not serve this";
    std::vector<Tensor> whole;
    for (const Tensor& t : run_on_gpu(p, By::kHopper).all()) whole.push_back(to_cpu(t));
    for (int64_t most_score_bytes : {1 << 10, 1 << 20, 3 << 20}) {
      const std::vector<Tensor> striped = run_on_gpu(p, By::kHopper, most_score_bytes).all();
      for (size_t i = 0; i < whole.size(); ++i)
        expect_same_bits(to_cpu(striped[i]), whole[i], concat("result ", i, ", ", most_score_bytes, " bytes").c_str());
    }
  }
}

TEST_P(AttentionCuda, SaysWhichImplementationRuns) {
  const Problem whole = problem(Segments::whole_rows(1, 256), {16, 2, 256});
  const Problem packed = problem(Segments::packed({100, 156}), {16, 2, 256});
  const auto for_whole = attention_implementation(gpu, inputs_on_gpu(whole), to_gpu(whole.segments));
  const auto for_packed = attention_implementation(gpu, inputs_on_gpu(packed), to_gpu(packed.segments));
  std::printf("whole rows: forward %s, backward %s\npacked: forward %s, backward %s\n", for_whole.forward.c_str(),
              for_whole.backward.c_str(), for_packed.forward.c_str(), for_packed.backward.c_str());
  EXPECT_FALSE(runs_in_cudnn(for_packed.backward));
  if (serves(By::kHopper, whole)) {
    EXPECT_EQ(for_whole.backward, "Hopper kernel");
    EXPECT_EQ(for_packed.backward, "Hopper kernel");
  }
  if (activation() == DType::kF32) {
    EXPECT_EQ(for_whole.forward.substr(0, 11), "fp32 kernel");
    EXPECT_EQ(for_whole.backward.substr(0, 11), "fp32 kernel");
  }
}

}  // namespace
}  // namespace braid
