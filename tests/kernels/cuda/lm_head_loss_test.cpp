#include "kernels/lm_head_loss.h"

#include "tests/kernels/cuda/cuda_testing.h"

namespace braid {
namespace {

using namespace braid::testing;

class LmHeadLossCuda : public CudaTest {};
BRAID_FOR_EACH_ACTIVATION(LmHeadLossCuda);

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

}  // namespace
}  // namespace braid
