#include "kernels/rms_norm.h"

#include "tests/kernels/cuda/cuda_testing.h"

namespace braid {
namespace {

using namespace braid::testing;

class RmsNormCuda : public CudaTest {};
BRAID_FOR_EACH_ACTIVATION(RmsNormCuda);

TEST_P(RmsNormCuda, KeepsStatisticsWide) {
  const Tensor x = on_gpu({2, 8}, activation()), weight = on_gpu({8}, DType::kBF16);
  EXPECT_THROW(rms_norm_forward(gpu, x, on_gpu({2}, wide()), x, weight, 1e-6), DTypeError);
}

}  // namespace
}  // namespace braid
