#include "kernels/matmul.h"

#include "kernels/core/queues.h"
#include "kernels/cuda/gpu.h"
#include "kernels/matmul_algorithms.h"

#include "tests/kernels/cuda/cuda_testing.h"

namespace braid {
namespace {

using namespace braid::testing;

class MatmulCuda : public CudaTest {};
BRAID_FOR_EACH_ACTIVATION(MatmulCuda);

// Products of every kind, before and after their algorithms were chosen by measurement.
TEST_P(MatmulCuda, TunedProductsAreRight) {
  if (activation() != DType::kBF16) GTEST_SKIP() << "products of fp32 are not tuned";
  const int64_t N = 520, I = 264, O = 392;  // 1e8 floating-point operations
  const Tensor x = rounded(random_f64({N, I}, 1)), weight = rounded(random_f64({O, I}, 2));
  const Tensor d_y = rounded(random_f64({N, O}, 3)), start = random_f64({O, I}, 4);
  const Tensor x_start = rounded(random_f64({N, I}, 5));
  Tensor y = zeros_f64({N, O}), d_x = copy_of(x_start), d_weight = copy_of(start);
  linear_forward(cpu, y, x, weight);
  linear_backward_input(cpu, d_x, d_y, weight, Accumulate::kYes);
  linear_backward_weight(cpu, d_weight, d_y, x);
  const Tensor gpu_x = to_gpu(x, activation()), gpu_weight = to_gpu(weight, activation());
  const Tensor gpu_d_y = to_gpu(d_y, activation());
  auto expect_all_match = [&] {
    Tensor gpu_y = on_gpu({N, O}, activation()), gpu_d_x = to_gpu(x_start, activation());
    Tensor gpu_d_weight = to_gpu(start, wide());
    linear_forward(gpu, gpu_y, gpu_x, gpu_weight);
    linear_backward_input(gpu, gpu_d_x, gpu_d_y, gpu_weight, Accumulate::kYes);
    linear_backward_weight(gpu, gpu_d_weight, gpu_d_y, gpu_x);
    expect_matches(gpu_y, y, "y");
    expect_matches(gpu_d_x, d_x, "d_x");
    expect_matches(gpu_d_weight, d_weight, "d_weight", {5e-6, 1e-4});
  };
  const AlgorithmCounts before = matmul_algorithm_counts(gpu);
  expect_all_match();
  EXPECT_EQ(matmul_algorithm_counts(gpu).proposed, before.proposed + 3) << "no table holds these";
  AlgorithmTable table;
  std::vector<std::string> lines;
  tune_matmul(gpu, table, [&](const std::string& line) { lines.push_back(line); });
  EXPECT_GE(lines.size(), 3u);
  EXPECT_EQ(matmul_algorithm_counts(gpu).proposed, 0);
  expect_all_match();
  const std::string text = table.text();
  table = AlgorithmTable::parse(text, "here");
  tune_matmul(gpu, table, [&](const std::string& line) { ADD_FAILURE() << line << ", though the table holds it"; });
  EXPECT_EQ(table.text(), text);
}

TEST(Matmul, HasAWorkspaceWhereProductsRunAlone) {
  if (Context::num_gpus() == 0) GTEST_SKIP() << Context::why_no_gpu();
  Context gpu = Context::gpu(0);
  for (Context* ctx : {&gpu, &gpu.second()}) {
    EXPECT_NE(ctx->gpu().cublas_workspace, nullptr);
    EXPECT_EQ(ctx->side().gpu().cublas_workspace, nullptr);
    EXPECT_EQ(ctx->side().side().gpu().cublas_workspace, nullptr);
    EXPECT_EQ(ctx->side().gpu().health_checks, gpu.gpu().health_checks);
  }
  EXPECT_EQ(open_queue(gpu).gpu().cublas_workspace, nullptr);
}

}  // namespace
}  // namespace braid
