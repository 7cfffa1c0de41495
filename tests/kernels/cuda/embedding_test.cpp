#include "kernels/embedding.h"

#include "tests/kernels/cuda/cuda_testing.h"

namespace braid {
namespace {

using namespace braid::testing;

class EmbeddingCuda : public CudaTest {
 protected:
  // Some ids often, some never, every ninth token without one.
  static Tensor some_ids(int64_t N, int64_t V) {
    Tensor ids = zeros({N}, DType::kI64);
    for (int64_t n = 0; n < N; ++n) ids.data<int64_t>()[n] = n % 9 == 4 ? -1 : n % 3 == 0 ? V - 1 : n * n % V;
    return ids;
  }
  struct Size {
    int64_t N, V, C;
  };
  // One token; a run of thousands; the real width and vocabulary; rows without vectors.
  static constexpr Size kSizes[] = {{1, 3, 16}, {9000, 2, 40}, {700, 151936, 8}, {500, 300, 2048}, {900, 50, 37}};
};
BRAID_FOR_EACH_ACTIVATION(EmbeddingCuda);

// The sum over a run of thousands of tokens is one chain of fp32 additions, on the CPU too.
TEST_P(EmbeddingCuda, BackwardAddsInTokenOrder) {
  for (const auto& [N, V, C] : kSizes) {
    SCOPED_TRACE(std::to_string(N) + " x " + std::to_string(C));
    const Tensor d_y = converted(rounded(random_f64({N, C}, 1)), DType::kF32), ids = some_ids(N, V);
    Tensor d_table = converted(random_f64({V, C}, 2), DType::kF32);
    Tensor gpu_d_table = to_gpu(d_table);
    embedding_backward(cpu, d_table, d_y, ids);
    embedding_backward(gpu, gpu_d_table, to_gpu(converted(d_y, DType::kF64), activation()), to_gpu(ids));
    expect_same_bits(to_cpu(gpu_d_table), converted(d_table, DType::kF64), "d_table");
  }
}

}  // namespace
}  // namespace braid
