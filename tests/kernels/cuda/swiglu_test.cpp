#include "kernels/swiglu.h"

#include "tests/kernels/cuda/cuda_testing.h"

namespace braid {
namespace {

using namespace braid::testing;

class SwiGluCuda : public CudaTest {};
BRAID_FOR_EACH_ACTIVATION(SwiGluCuda);

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

}  // namespace
}  // namespace braid
