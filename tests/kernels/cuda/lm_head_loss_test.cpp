#include "kernels/lm_head_loss.h"

#include "tests/kernels/cuda/cuda_testing.h"

namespace braid {
namespace {

using namespace braid::testing;

class LmHeadLossCuda : public CudaTest {
 protected:
  static constexpr double kScale = 0.3;

  // Logits are numbers of about 1.5. Every seventh token has no target.
  void expect_matches_cpu(int64_t N, int64_t C, int64_t V) {
    SCOPED_TRACE(::testing::Message() << N << " tokens, C " << C << ", V " << V);
    const Tensor hidden = rounded(random_f64({N, C}, 1)), weight = rounded(random_f64({V, C}, 2, 1.5 / std::sqrt(C)));
    const Tensor start = random_f64({V, C}, 3, 1e-3);
    Tensor targets = zeros({N}, DType::kI64);
    for (int64_t n = 0; n < N; ++n) targets.data<int64_t>()[n] = n % 7 == 3 ? -1 : (n * 31 + 5) % V;
    Tensor loss_sum = zeros_f64({1}), d_hidden = zeros_f64({N, C}), d_weight = copy_of(start);
    lm_head_loss_forward_backward(cpu, loss_sum, d_hidden, d_weight, hidden, weight, targets, kScale);

    const Tensor gpu_hidden = to_gpu(hidden, activation()), gpu_weight = to_gpu(weight, activation());
    const Tensor gpu_targets = to_gpu(targets);
    Tensor gpu_loss = on_gpu({1}, DType::kF64), gpu_loss_again = on_gpu({1}, DType::kF64);
    Tensor gpu_d_hidden = on_gpu({N, C}, activation()), gpu_d_weight = to_gpu(start, wide());
    lm_head_loss_forward(gpu, gpu_loss, gpu_hidden, gpu_weight, gpu_targets);
    lm_head_loss_forward_backward(gpu, gpu_loss_again, gpu_d_hidden, gpu_d_weight, gpu_hidden, gpu_weight, gpu_targets,
                                  kScale);
    // In bf16 the logits of a token are rounded, which moves its loss by about 3e-3 either way.
    const double expected = loss_sum.data<double>()[0];
    const double bound = activation() == DType::kBF16 ? 1e-3 + 3e-3 / std::sqrt(double(N)) : 2e-6;
    EXPECT_NEAR(to_cpu(gpu_loss).data<double>()[0], expected, bound * expected);
    expect_same_bits(to_cpu(gpu_loss_again), to_cpu(gpu_loss), "loss with and without gradients");
    // A logit in bf16 is off by up to 2^-8 of itself, and with it every probability. The worst element of d_weight is
    // one of the few rows of targets, which are far above the RMS of all rows.
    Tolerance tolerance = tolerance_of(activation());
    tolerance.worst = activation() == DType::kBF16 ? 0.25 : 2e-4;
    expect_matches(gpu_d_hidden, d_hidden, "d_hidden", tolerance);
    expect_matches(gpu_d_weight, d_weight, "d_weight", tolerance);
    const double cosine = dot(to_cpu(gpu_d_weight), d_weight) /
                          std::sqrt(dot(to_cpu(gpu_d_weight), to_cpu(gpu_d_weight)) * dot(d_weight, d_weight));
    EXPECT_GE(cosine, 0.9999);
  }
};
BRAID_FOR_EACH_ACTIVATION(LmHeadLossCuda);

TEST_P(LmHeadLossCuda, MatchesTheCpu) {
  expect_matches_cpu(1, 3, 5);
  expect_matches_cpu(40, 8, 260);
  expect_matches_cpu(129, 96, 1001);
  expect_matches_cpu(60, 64, 40000);
}

TEST_P(LmHeadLossCuda, SeveralChunks) { expect_matches_cpu(9000, 8, 72); }

TEST_P(LmHeadLossCuda, RealVocabulary) { expect_matches_cpu(7, 16, 151936); }

TEST_P(LmHeadLossCuda, NoTargets) {
  const int64_t N = 5, C = 16, V = 40;
  Tensor targets = zeros({N}, DType::kI64);
  std::fill_n(targets.data<int64_t>(), N, -1);
  const Tensor start = random_f64({V, C}, 3);
  Tensor loss = on_gpu({1}, DType::kF64), d_hidden = on_gpu({N, C}, activation()), d_weight = to_gpu(start, wide());
  lm_head_loss_forward_backward(gpu, loss, d_hidden, d_weight, to_gpu(random_f64({N, C}, 1), activation()),
                                to_gpu(random_f64({V, C}, 2), activation()), to_gpu(targets), 1);
  EXPECT_EQ(to_cpu(loss).data<double>()[0], 0);
  expect_matches(d_hidden, zeros_f64({N, C}), "d_hidden", {0, 0});
  expect_matches(d_weight, start, "d_weight", {1e-7, 1e-6});
}

TEST_P(LmHeadLossCuda, NoTokens) {
  const Tensor start = random_f64({9, 8}, 3);
  Tensor loss = on_gpu({1}, DType::kF64), d_weight = to_gpu(start, wide());
  lm_head_loss_forward_backward(gpu, loss, on_gpu({0, 8}, activation()), d_weight, on_gpu({0, 8}, activation()),
                                on_gpu({9, 8}, activation()), on_gpu({0}, DType::kI64), 1);
  EXPECT_EQ(to_cpu(loss).data<double>()[0], 0);
  expect_matches(d_weight, start, "d_weight", {1e-7, 1e-6});
}

TEST_P(LmHeadLossCuda, LargeLogits) {
  // The only logits are 0 and +-3000: probabilities are 0 and 1, and no exponential may overflow.
  const Tensor hidden = tensor_of<double>({1, -1}, {2, 1}), weight = tensor_of<double>({3000, 0, -3000}, {3, 1});
  const Tensor targets = tensor_of<int64_t>({0, 1}, {2});
  Tensor loss = on_gpu({1}, DType::kF64), d_hidden = on_gpu({2, 1}, activation());
  Tensor d_weight = to_gpu(zeros_f64({3, 1}), wide());
  lm_head_loss_forward_backward(gpu, loss, d_hidden, d_weight, to_gpu(hidden, activation()),
                                to_gpu(weight, activation()), to_gpu(targets), 1);
  const Tensor stored = to_cpu(to_gpu(weight, activation()));  // 3000 as the dtype has it
  EXPECT_EQ(to_cpu(loss).data<double>()[0], value_at(stored, 0));
  expect_matches(d_weight, tensor_of<double>({0, 1, -1}, {3, 1}), "d_weight", {0, 0});
}

TEST_P(LmHeadLossCuda, SameBits) {
  const int64_t N = 5000, C = 64, V = 1000;
  const Tensor hidden = to_gpu(random_f64({N, C}, 1), activation()),
               weight = to_gpu(random_f64({V, C}, 2), activation());
  Tensor host_targets = zeros({N}, DType::kI64);
  for (int64_t n = 0; n < N; ++n) host_targets.data<int64_t>()[n] = n % V;
  const Tensor targets = to_gpu(host_targets);
  expect_same_bits_every_time([&] {
    Tensor loss = on_gpu({1}, DType::kF64), d_hidden = on_gpu({N, C}, activation());
    Tensor d_weight = to_gpu(zeros_f64({V, C}), wide());
    lm_head_loss_forward_backward(gpu, loss, d_hidden, d_weight, hidden, weight, targets, 0.1);
    return std::vector<Tensor>{loss, d_hidden, d_weight};
  });
}

}  // namespace
}  // namespace braid
