#include "kernels/attention_inputs.h"

#include "tests/kernels/cuda/cuda_testing.h"

namespace braid {
namespace {

using namespace braid::testing;

class AttentionInputsCuda : public CudaTest {
 protected:
  // Inputs that both sides read, in fp64.
  struct Problem {
    Segments segments;
    AttentionDims dims;
    AttentionProjections x;
    AttentionInputWeights weights;
    Tensor d_q, d_k;
    AttentionInputWeights start;  // of the gradients of the weights
  };
  static Problem problem(Segments segments, const AttentionDims& dims) {
    const int64_t N = segments.num_tokens(), Hq = dims.query_heads, Hkv = dims.kv_heads, Dh = dims.head_dim;
    return {std::move(segments),
            dims,
            {rounded(random_f64({N, Hq, 2, Dh}, 1)), rounded(random_f64({N, Hkv, Dh}, 2))},
            {converted(random_normal({Dh}, DType::kF32, 3, 0.3), DType::kF64),
             converted(random_normal({Dh}, DType::kF32, 4, 0.3), DType::kF64)},
            rounded(random_f64({N, Hq, Dh}, 5)),
            rounded(random_f64({N, Hkv, Dh}, 6)),
            {random_f64({Dh}, 7), random_f64({Dh}, 8)}};
  }

  struct Results {
    AttentionInputs out;
    AttentionProjections d_x;
    AttentionInputWeights d_weights;
  };
  Results run_on_gpu(const Problem& p) {
    const int64_t N = p.segments.num_tokens();
    const Segments segments = to_gpu(p.segments);
    const AttentionProjections x = {to_gpu(p.x.q_gate, activation()), to_gpu(p.x.k, activation())};
    const AttentionInputWeights weights = {to_gpu(p.weights.q_norm, wide()), to_gpu(p.weights.k_norm, wide())};
    Results r = {{on_gpu(p.d_q.shape(), activation()), on_gpu(p.d_k.shape(), activation()),
                  on_gpu({N, p.dims.query_heads}, wide()), on_gpu({N, p.dims.kv_heads}, wide())},
                 {to_gpu(zeros_f64(p.x.q_gate.shape()), activation()),  // the gate half must stay as it is
                  on_gpu(p.d_k.shape(), activation())},
                 {to_gpu(p.start.q_norm, wide()), to_gpu(p.start.k_norm, wide())}};
    attention_inputs_forward(gpu, r.out, x, weights, segments, p.dims);
    attention_inputs_backward(gpu, r.d_x, r.d_weights, to_gpu(p.d_q, activation()), to_gpu(p.d_k, activation()), r.out,
                              x, weights, segments, p.dims);
    return r;
  }
};
BRAID_FOR_EACH_ACTIVATION(AttentionInputsCuda);

constexpr AttentionDims kModel = {
    .query_heads = 16, .kv_heads = 2, .head_dim = 256, .rotary_dim = 64, .rope_theta = 1e7, .eps = 1e-6};

// Angles of thousands of radians, formed in fp32 on both sides: a sine without range reduction would be far off.
TEST_P(AttentionInputsCuda, LongDocuments) {
  if (activation() != DType::kF32) GTEST_SKIP() << "the CPU forms fp32 angles for fp32 only";
  AttentionDims dims = kModel;
  dims.query_heads = dims.kv_heads = 1;
  const Problem p = problem(Segments::packed({9000}), dims);
  const int64_t N = 9000;
  auto f32 = [](const Tensor& t) { return converted(t, DType::kF32); };
  AttentionInputs expected = {zeros({N, 1, 256}, DType::kF32), zeros({N, 1, 256}, DType::kF32),
                              zeros({N, 1}, DType::kF32), zeros({N, 1}, DType::kF32)};
  attention_inputs_forward(cpu, expected, {f32(p.x.q_gate), f32(p.x.k)}, {f32(p.weights.q_norm), f32(p.weights.k_norm)},
                           p.segments, dims);
  const Results actual = run_on_gpu(p);
  // inv_freq may differ by an ulp, which turns an angle of up to 9000 by up to 5e-4.
  expect_matches(actual.out.q, converted(expected.q, DType::kF64), "q", {3e-5, 2e-3});
  expect_matches(actual.out.k, converted(expected.k, DType::kF64), "k", {3e-5, 2e-3});
}

TEST_P(AttentionInputsCuda, PackedDocumentsGiveTheSameBitsAsSeparateOnes) {
  const Problem packed = problem(Segments::packed({5, 1, 23}), kModel);
  const Results whole = run_on_gpu(packed);
  for (int64_t d = 0; d < packed.segments.num_documents(); ++d) {
    const int64_t begin = packed.segments.begin(d), end = packed.segments.end(d);
    Problem alone = packed;
    alone.segments = Segments::packed({end - begin});
    for (Tensor* t : {&alone.x.q_gate, &alone.x.k, &alone.d_q, &alone.d_k}) *t = t->rows(begin, end);
    const Results one = run_on_gpu(alone);
    expect_same_bits(to_cpu(one.out.q), to_cpu(whole.out.q).rows(begin, end), "q");
    expect_same_bits(to_cpu(one.out.k), to_cpu(whole.out.k).rows(begin, end), "k");
    expect_same_bits(to_cpu(one.d_x.q_gate), to_cpu(whole.d_x.q_gate).rows(begin, end), "d_q_gate");
  }
}

}  // namespace
}  // namespace braid
