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

TEST_P(EmbeddingCuda, GathersRows) {
  for (const auto& [N, V, C] : kSizes) {
    const Tensor table = rounded(random_f64({V, C}, 1)), ids = some_ids(N, V);
    Tensor y = zeros_f64({N, C});
    embedding_forward(cpu, y, ids, table);
    Tensor gpu_y = on_gpu({N, C}, activation());
    embedding_forward(gpu, gpu_y, to_gpu(ids), to_gpu(table, activation()));
    expect_same_bits(to_cpu(gpu_y), y, "y");
  }
}

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

TEST_P(EmbeddingCuda, WithoutIdsNothingIsAdded) {
  const Tensor ids = tensor_of<int64_t>({-1, -1}, {2}), start = random_f64({3, 8}, 1);
  Tensor d_table = to_gpu(start, wide());
  const Tensor before = to_cpu(d_table);
  embedding_backward(gpu, d_table, to_gpu(random_f64({2, 8}, 2), activation()), to_gpu(ids));
  embedding_backward(gpu, d_table, on_gpu({0, 8}, activation()), on_gpu({0}, DType::kI64));
  expect_same_bits(to_cpu(d_table), before, "d_table");
}

TEST_P(EmbeddingCuda, SameBits) {
  const int64_t N = 5000, V = 100, C = 256;
  const Tensor d_y = to_gpu(random_f64({N, C}, 1), activation()), ids = to_gpu(some_ids(N, V));
  const Tensor start = random_f64({V, C}, 2);
  expect_same_bits_every_time([&] {
    Tensor d_table = to_gpu(start, wide());
    embedding_backward(gpu, d_table, d_y, ids);
    return std::vector<Tensor>{d_table};
  });
}

}  // namespace
}  // namespace braid
