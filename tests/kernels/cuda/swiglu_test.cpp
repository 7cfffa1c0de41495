#include "kernels/swiglu.h"

#include "tests/kernels/cuda/cuda_testing.h"

namespace braid {
namespace {

using namespace braid::testing;

class SwiGluCuda : public CudaTest {};
BRAID_FOR_EACH_ACTIVATION(SwiGluCuda);

TEST_P(SwiGluCuda, ForwardAndBackward) {
  // One row; the real width; rows shorter than a warp reads at a time, longer, and without vectors.
  for (const auto& [N, F] :
       {std::pair<int64_t, int64_t>{1, 512}, {300, 512}, {40, 8}, {30, 264}, {9, 1416}, {50, 37}, {7, 1}}) {
    SCOPED_TRACE(std::to_string(N) + " x " + std::to_string(F));
    const Tensor a = rounded(random_f64({N, F}, 1, 3)), b = rounded(random_f64({N, F}, 2)),
                 gate = random_f64({N, 1}, 3);
    const Tensor d_h = rounded(random_f64({N, F}, 4));
    Tensor h = zeros_f64({N, F}), d_a = zeros_f64({N, F}), d_b = zeros_f64({N, F}), d_gate = zeros_f64({N, 1});
    swiglu_forward(cpu, h, a, b, gate);
    swiglu_backward(cpu, d_a, d_b, d_gate, d_h, a, b, gate);

    const Tensor gpu_a = to_gpu(a, activation()), gpu_b = to_gpu(b, activation()), gpu_gate = to_gpu(gate, wide());
    const Tensor gpu_d_h = to_gpu(d_h, activation());
    Tensor gpu_h = on_gpu({N, F}, activation());
    swiglu_forward(gpu, gpu_h, gpu_a, gpu_b, gpu_gate);
    expect_matches(gpu_h, h, "h");
    for (Tensor gpu_d_a : {on_gpu({N, F}, activation()), gpu_d_h}) {  // the second time in place
      Tensor gpu_d_b = on_gpu({N, F}, activation()), gpu_d_gate = on_gpu({N, 1}, activation());
      swiglu_backward(gpu, gpu_d_a, gpu_d_b, gpu_d_gate, gpu_d_h, gpu_a, gpu_b, gpu_gate);
      expect_matches(gpu_d_a, d_a, "d_a");
      expect_matches(gpu_d_b, d_b, "d_b");
      expect_matches(gpu_d_gate, d_gate, "d_gate");
    }
  }
}

TEST_P(SwiGluCuda, StaysFiniteFarFromZero) {
  const Tensor a = rounded(tensor_of<double>({-1e4, 1e4, -90, 90, -800, 800}, {1, 6}));
  const Tensor one = tensor_of<double>({1, 1, 1, 1, 1, 1}, {1, 6}), gate = tensor_of<double>({1e4}, {1, 1});
  const Tensor gpu_a = to_gpu(a, activation()), gpu_one = to_gpu(one, activation()), gpu_gate = to_gpu(gate, wide());
  Tensor h = on_gpu({1, 6}, activation()), d_a = on_gpu({1, 6}, activation()), d_b = on_gpu({1, 6}, activation());
  Tensor d_gate = on_gpu({1, 1}, activation());
  swiglu_forward(gpu, h, gpu_a, gpu_one, gpu_gate);
  swiglu_backward(gpu, d_a, d_b, d_gate, gpu_one, gpu_a, gpu_one, gpu_gate);
  const Tensor host_h = to_cpu(h), host_d_a = to_cpu(d_a), host_d_b = to_cpu(d_b);
  for (int64_t i = 0; i < 6; ++i) {
    EXPECT_NEAR(value_at(host_h, i), std::max(value_at(a, i), 0.0), 1e-3);
    EXPECT_NEAR(value_at(host_d_a, i), value_at(a, i) > 0, 1e-3);
    EXPECT_NEAR(value_at(host_d_b, i), std::max(value_at(a, i), 0.0), 1e-3);
  }
  EXPECT_EQ(value_at(to_cpu(d_gate), 0), 0);
}

TEST_P(SwiGluCuda, SameBits) {
  const int64_t N = 1000, F = 512;
  const Tensor a = to_gpu(random_f64({N, F}, 1), activation()), b = to_gpu(random_f64({N, F}, 2), activation());
  const Tensor gate = to_gpu(random_f64({N, 1}, 3), wide()), d_h = to_gpu(random_f64({N, F}, 4), activation());
  expect_same_bits_every_time([&] {
    Tensor h = on_gpu({N, F}, activation()), d_a = on_gpu({N, F}, activation()), d_b = on_gpu({N, F}, activation());
    Tensor d_gate = on_gpu({N, 1}, activation());
    swiglu_forward(gpu, h, a, b, gate);
    swiglu_backward(gpu, d_a, d_b, d_gate, d_h, a, b, gate);
    return std::vector<Tensor>{h, d_a, d_b, d_gate};
  });
}

}  // namespace
}  // namespace braid
