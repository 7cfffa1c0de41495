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

TEST_P(SumSquaresCuda, AddsInDouble) {
  EXPECT_NEAR(sum_squares_of(to_gpu(tensor_of<double>({1e30}, {1}), activation())) / 1e60, 1, 1e-2);
  EXPECT_TRUE(std::isinf(sum_squares_of(to_gpu(tensor_of<double>({1, -INFINITY}, {2}), activation()))));
  EXPECT_TRUE(std::isnan(sum_squares_of(to_gpu(tensor_of<double>({1, NAN}, {2}), activation()))));
}

}  // namespace
}  // namespace braid
