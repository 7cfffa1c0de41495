#include "kernels/sum_squares.h"

#include "tests/kernels/cuda/cuda_testing.h"

namespace braid {
namespace {

using namespace braid::testing;

class SumSquaresCuda : public CudaTest {
 protected:
  double sum_squares_of(const Tensor& x) {
    Tensor out = on_gpu({1}, DType::kF64);
    sum_squares(gpu, out, x);
    return value_at(to_cpu(out), 0);
  }
};
BRAID_FOR_EACH_ACTIVATION(SumSquaresCuda);

TEST_P(SumSquaresCuda, CountsEveryElementOfEveryBlock) {
  for (int64_t n : {0, 1, 7, 1023, 1024, 1025, 100003, 1 << 20, (1 << 20) + 8, 3000000}) {
    Tensor x = zeros_f64({n});
    std::fill_n(x.data<double>(), n, 3.0);
    EXPECT_EQ(sum_squares_of(to_gpu(x, activation())), 9.0 * double(n)) << n;
  }
}

// Both sum in fp64, in different orders.
TEST_P(SumSquaresCuda, MatchesTheCpu) {
  const Tensor x = rounded(random_f64({50, 3, 601}, 1)), shifted = to_gpu(x, activation()).view({x.numel()});
  Tensor expected = zeros_f64({1});
  sum_squares(cpu, expected, x);
  EXPECT_NEAR(sum_squares_of(to_gpu(x, activation())) / value_at(expected, 0), 1, 1e-13);
  sum_squares(cpu, expected, x.view({x.numel()}).rows(1, x.numel()));
  EXPECT_NEAR(sum_squares_of(shifted.rows(1, x.numel())) / value_at(expected, 0), 1, 1e-13);
}

TEST_P(SumSquaresCuda, AddsInDouble) {
  EXPECT_NEAR(sum_squares_of(to_gpu(tensor_of<double>({1e30}, {1}), activation())) / 1e60, 1, 1e-2);
  EXPECT_TRUE(std::isinf(sum_squares_of(to_gpu(tensor_of<double>({1, -INFINITY}, {2}), activation()))));
  EXPECT_TRUE(std::isnan(sum_squares_of(to_gpu(tensor_of<double>({1, NAN}, {2}), activation()))));
}

TEST_P(SumSquaresCuda, SameBits) {
  const Tensor x = to_gpu(random_f64({2000001}, 1), activation());
  expect_same_bits_every_time([&] {
    Tensor out = on_gpu({1}, DType::kF64);
    sum_squares(gpu, out, x);
    return std::vector<Tensor>{out};
  });
}

}  // namespace
}  // namespace braid
