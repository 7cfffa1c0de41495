#include "kernels/lm_head_loss.h"
#include "tests/kernels/cuda/bench.h"

// LM head and cross entropy: 8 x 4096 tokens, hidden 2048, the real vocabulary.
int main() {
  using namespace braid;
  using bench::Bench;
  constexpr int64_t N = 8 * 4096, C = 2048, V = 151936;
  Bench bench;
  const Tensor hidden = bench.random({N, C}, DType::kBF16)[0], weight = bench.random({V, C}, DType::kBF16, 0.02)[0];
  std::vector<int64_t> host_targets(N);
  for (int64_t n = 0; n < N; ++n) host_targets[n] = n * 7919 % V;
  const Tensor targets = bench.upload(host_targets, {N});
  Tensor loss = bench.empty({1}, DType::kF64), d_hidden = bench.empty({N, C}, DType::kBF16);
  Tensor d_weight = bench.empty({V, C}, DType::kF32);
  fill_zero(bench.ctx(), d_weight);
  const double product = 2.0 * N * V * C;
  bench.measure("lm_head_loss_forward", 0, product,
                [&](int) { lm_head_loss_forward(bench.ctx(), loss, hidden, weight, targets); });
  bench.measure("lm_head_loss_forward_backward", 0, 3 * product, [&](int) {
    lm_head_loss_forward_backward(bench.ctx(), loss, d_hidden, d_weight, hidden, weight, targets, 1.0 / N);
  });
  return 0;
}
