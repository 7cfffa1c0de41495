#include "kernels/adamw.h"

#include "tests/kernels/cuda/cuda_testing.h"

namespace braid {
namespace {

using namespace braid::testing;

// The activation dtype is that of the rounded weights; weights and gradients are fp32.
class AdamWCuda : public CudaTest {
 protected:
  static Tensor floats(int64_t n, uint64_t seed, double stddev, double mean = 0) {
    return converted(random_normal({n}, DType::kF32, seed, stddev, mean), DType::kF64);
  }
  static AdamWStep step(int64_t number) {
    return {.lr = 1e-2,
            .beta1 = 0.9,
            .beta2 = 0.95,
            .eps = 1e-8,
            .weight_decay = 0.1,
            .gradient_scale = number % 2 ? 0.7 : 1,
            .step = number};
  }
};
BRAID_FOR_EACH_ACTIVATION(AdamWCuda);

TEST_P(AdamWCuda, ShardsGiveTheBitsOfTheWhole) {
  const int64_t n = 1003;
  const Tensor start = floats(n, 1, 1), gradient = to_gpu(floats(n, 2, 1), DType::kF32), zero = zeros_f64({n});
  auto fresh = [&] { return AdamWState{to_gpu(start, wide()), to_gpu(zero, DType::kF32), to_gpu(zero, DType::kF32)}; };
  const AdamWState whole = fresh(), parts = fresh();
  Tensor rounded_whole = on_gpu({n}, activation()), rounded_parts = on_gpu({n}, activation());
  for (int64_t t = 1; t <= 3; ++t) {
    adamw_update(gpu, whole, rounded_whole, gradient, step(t));
    for (auto [begin, end] : {std::pair<int64_t, int64_t>{0, 5}, {5, 340}, {340, n}})
      adamw_update(gpu, {parts.weight.rows(begin, end), parts.m.rows(begin, end), parts.v.rows(begin, end)},
                   rounded_parts.rows(begin, end), gradient.rows(begin, end), step(t));
  }
  expect_same_bits(to_cpu(parts.weight), to_cpu(whole.weight), "weight");
  expect_same_bits(to_cpu(parts.m), to_cpu(whole.m), "m");
  expect_same_bits(to_cpu(parts.v), to_cpu(whole.v), "v");
  expect_same_bits(to_cpu(rounded_parts), to_cpu(rounded_whole), "rounded");
}

}  // namespace
}  // namespace braid
