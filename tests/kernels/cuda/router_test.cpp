#include "kernels/router.h"

#include <algorithm>
#include <numeric>

#include "tests/kernels/cuda/cuda_testing.h"

namespace braid {
namespace {

using namespace braid::testing;

class RouterCuda : public CudaTest {
 protected:
  // `memory` is poisoned or on_gpu.
  template <class Memory>
  static RouterOutputs outputs(const Segments& segments, int64_t E, int64_t K, DType dtype, Memory&& memory) {
    const int64_t N = segments.num_tokens(), B = segments.num_rows;
    return {.expert_id = memory({N, K}, DType::kI32),
            .gate = memory({N, K}, dtype),
            .prob = memory({N, E}, dtype),
            .lse = memory({N}, dtype),
            .counts = memory({B, E}, DType::kI64),
            .prob_sum = memory({B, E}, DType::kF64),
            .z_sum = memory({B}, DType::kF64)};
  }
  RouterOutputs on_cpu(const Tensor& logits, const Segments& segments, int64_t K, GateNorm norm) {
    RouterOutputs out = outputs(segments, logits.dim(1), K, DType::kF64, poisoned);
    router_forward(cpu, out, logits, segments, norm);
    return out;
  }
  RouterOutputs route_on_gpu(const Tensor& logits, const Segments& segments, int64_t K, GateNorm norm) {
    RouterOutputs out = outputs(segments, logits.dim(1), K, DType::kF32, on_gpu);
    router_forward(gpu, out, to_gpu(logits, DType::kF32), segments, norm);
    return out;
  }
  // Multiples of 1/8: many ties, and what is not equal is far enough apart for fp32.
  static Tensor random_logits(int64_t N, int64_t E, uint64_t seed) {
    Tensor logits = random_f64({N, E}, seed, 1.5);
    for (int64_t i = 0; i < logits.numel(); ++i)
      logits.data<double>()[i] = std::round(logits.data<double>()[i] * 8) / 8;
    return logits;
  }
  static Segments rows_with_invalid_tokens(int64_t B, int64_t T) {
    Segments segments = Segments::whole_rows(B, T);
    for (int64_t n = 0; n < B * T; ++n) segments.valid[n] = n % 7 != 3;
    if (B > 1) std::fill_n(segments.valid.begin() + T, T, 0);  // a row without valid tokens
    return to_gpu(segments);
  }

  static constexpr Tolerance kStatistics = {1e-6, 1e-5};  // fp32 arithmetic for every activation dtype
};
BRAID_FOR_EACH_ACTIVATION(RouterCuda);

// Any logits: the choice is that of a stable sort of the probabilities that the GPU itself found, in slots by expert.
TEST_P(RouterCuda, ChoosesAsASortWould) {
  const int64_t N = 200, E = 512, K = 10;
  const Segments segments = to_gpu(Segments::whole_rows(1, N));
  const RouterOutputs out = route_on_gpu(random_f64({N, E}, 1, 3), segments, K, GateNorm::kTopK);
  const Tensor ids = to_cpu(out.expert_id), prob = to_cpu(out.prob);
  for (int64_t n = 0; n < N; ++n) {
    const double* p = prob.data<double>() + n * E;
    std::vector<int32_t> order(E);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [p](int32_t a, int32_t b) { return p[a] > p[b]; });
    std::sort(order.begin(), order.begin() + K);
    for (int64_t k = 0; k < K; ++k) ASSERT_EQ(ids.data<int32_t>()[n * K + k], order[k]) << "token " << n;
  }
}

TEST_P(RouterCuda, LargeLogits) {
  const Segments segments = to_gpu(Segments::whole_rows(1, 2));
  const Tensor logits = tensor_of<double>({0, -1e30, 1e30, -INFINITY, 1e4, 1e4 + 1, 1e4 + 2, 1e4 + 3}, {2, 4});
  const RouterOutputs out = route_on_gpu(logits, segments, 2, GateNorm::kTopK);
  const Tensor ids = to_cpu(out.expert_id), prob = to_cpu(out.prob), gate = to_cpu(out.gate);
  for (int64_t e = 0; e < 4; ++e) EXPECT_EQ(value_at(prob, e), e == 2);
  EXPECT_NEAR(value_at(prob, 7), 0.64391426, 1e-6);
  const int32_t expected[] = {0, 2, 2, 3};
  for (int64_t i = 0; i < 4; ++i) EXPECT_EQ(ids.data<int32_t>()[i], expected[i]);
  EXPECT_EQ(value_at(gate, 0), 0);
  EXPECT_EQ(value_at(gate, 1), 1);
}

TEST_P(RouterCuda, NanLogitsGiveUsableIdsAndNanGates) {
  const Segments segments = to_gpu(Segments::whole_rows(1, 1));
  for (int64_t bad : {0, 5, 40}) {
    Tensor logits = random_f64({1, 41}, 1);
    logits.data<double>()[bad] = NAN;
    const RouterOutputs out = route_on_gpu(logits, segments, 3, GateNorm::kTopK);
    const Tensor ids = to_cpu(out.expert_id);
    std::vector<int32_t> sorted(ids.data<int32_t>(), ids.data<int32_t>() + 3);
    std::sort(sorted.begin(), sorted.end());
    EXPECT_TRUE(sorted[0] >= 0 && sorted[0] < sorted[1] && sorted[1] < sorted[2] && sorted[2] < 41);
    EXPECT_TRUE(std::isnan(value_at(to_cpu(out.gate), 0)));
    EXPECT_TRUE(std::isnan(value_at(to_cpu(out.z_sum), 0)));
  }
}

// Uniform counts: the balance loss has no gradient, which only double arithmetic shows.
TEST_P(RouterCuda, GradientOfUniformBalanceIsZero) {
  const int64_t N = 50, E = 512, K = 10;
  const Segments segments = to_gpu(Segments::whole_rows(1, N));
  const RouterOutputs out = route_on_gpu(random_f64({N, E}, 1, 2), segments, K, GateNorm::kTopK);
  Tensor d_prob = zeros_f64({1, E}), d_logits = on_gpu({N, E}, activation());
  std::fill_n(d_prob.data<double>(), E, 3.0);
  router_backward(gpu, d_logits, to_gpu(zeros_f64({N, K}), wide()), to_gpu(d_prob), 0, out, segments, GateNorm::kTopK);
  const Tensor d = to_cpu(d_logits);
  for (int64_t i = 0; i < d.numel(); ++i) ASSERT_LE(std::abs(value_at(d, i)), 1e-6);
}

TEST_P(RouterCuda, RefusesMoreExpertsThanItCanHold) {
  const Segments segments = to_gpu(Segments::whole_rows(1, 1));
  EXPECT_THROW(route_on_gpu(zeros_f64({1, 4097}), segments, 2, GateNorm::kTopK), ShapeError);
  EXPECT_THROW(route_on_gpu(zeros_f64({1, 64}), segments, 33, GateNorm::kTopK), ShapeError);
}

}  // namespace
}  // namespace braid
