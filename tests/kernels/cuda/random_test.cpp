#include "kernels/random.h"

#include "tests/kernels/cuda/cuda_testing.h"

namespace braid {
namespace {

using namespace braid::testing;

class RandomCuda : public CudaTest {};
BRAID_FOR_EACH_ACTIVATION(RandomCuda);

// The same fp64 numbers but for their last bits, so after rounding the same but for one in millions.
TEST_P(RandomCuda, FillsWithTheNumbersOfTheCpu) {
  const int64_t count = 20000;
  Tensor normal = zeros_f64({count}), uniform = zeros_f64({count});
  fill_normal(cpu, normal, 0.5, 2, 5, 9, 7);
  fill_uniform(cpu, uniform, -1, 3, 5, 9, int64_t{1} << 40);
  Tensor gpu_normal = on_gpu({count}, activation()), gpu_uniform = on_gpu({count}, activation());
  fill_normal(gpu, gpu_normal, 0.5, 2, 5, 9, 7);
  fill_uniform(gpu, gpu_uniform, -1, 3, 5, 9, int64_t{1} << 40);
  expect_matches(gpu_normal, rounded(normal), "normal", {1e-9, 1e-2});
  expect_matches(gpu_uniform, rounded(uniform), "uniform", {1e-9, 1e-2});
}

}  // namespace
}  // namespace braid
