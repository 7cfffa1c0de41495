#include "kernels/lm_head_loss.h"
#include "trainer/bench/workbench.h"

namespace braid {

void bench_lm_head_loss(Workbench& b) {
  const int64_t N = b.num_tokens(), C = b.model().hidden_size, V = b.model().vocab_size;
  const DType activation = b.activation();
  const Tensor hidden = b.normal({N, C}, activation), weight = b.normal({V, C}, activation, 0.02);
  std::vector<int64_t> host_targets;
  for (int64_t n = 0; n < N; ++n) host_targets.push_back(n * 7919 % V);
  const Tensor targets = b.filled(host_targets, {N});
  Tensor loss = b.empty({1}, DType::kF64), d_hidden = b.empty({N, C}, activation);
  Tensor d_weight = b.zeros({V, C}, wide_dtype(activation));
  const double product = 2.0 * double(N) * double(V) * double(C);
  const double inputs = double(hidden.bytes() + weight.bytes());
  const std::string shape = concat(b.tokens_by(C), ", vocabulary ", V);
  b.measure("lm_head_loss_forward", shape, {.bytes = inputs, .flop = product},
            [&](int) { lm_head_loss_forward(b.ctx(), loss, hidden, weight, targets); });
  b.measure("lm_head_loss_forward_backward", shape,
            {.bytes = inputs + double(d_hidden.bytes()) + 2 * double(d_weight.bytes()), .flop = 3 * product}, [&](int) {
              lm_head_loss_forward_backward(b.ctx(), loss, d_hidden, d_weight, hidden, weight, targets, 1 / double(N));
            });
}

}  // namespace braid
