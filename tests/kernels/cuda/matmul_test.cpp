#include "kernels/matmul.h"

#include "kernels/matmul_algorithms.h"

#include "tests/kernels/cuda/cuda_testing.h"

namespace braid {
namespace {

using namespace braid::testing;

class MatmulCuda : public CudaTest {};
BRAID_FOR_EACH_ACTIVATION(MatmulCuda);

TEST_P(MatmulCuda, AllTransposes) {
  for (const auto& [M, N, K] : {std::array<int64_t, 3>{64, 96, 128}, {1, 64, 40}, {37, 1, 24}, {130, 33, 7}}) {
    for (Transpose ta : {Transpose::kNo, Transpose::kYes}) {
      for (Transpose tb : {Transpose::kNo, Transpose::kYes}) {
        const Tensor a = rounded(random_f64(ta == Transpose::kNo ? Shape{M, K} : Shape{K, M}, 1));
        const Tensor b = rounded(random_f64(tb == Transpose::kNo ? Shape{K, N} : Shape{N, K}, 2));
        Tensor c = zeros_f64({M, N});
        matmul(cpu, c, a, ta, b, tb);
        for (DType out : {activation(), wide()}) {
          Tensor gpu_c = on_gpu({M, N}, out);
          matmul(gpu, gpu_c, to_gpu(a, activation()), ta, to_gpu(b, activation()), tb);
          expect_matches(gpu_c, c, "c");
        }
      }
    }
  }
}

TEST_P(MatmulCuda, LinearLayerAndItsGradients) {
  const int64_t N = 200, I = 72, O = 48;
  const Tensor x = rounded(random_f64({N, I}, 1)), weight = rounded(random_f64({O, I}, 2));
  const Tensor d_y = rounded(random_f64({N, O}, 3)), start = random_f64({O, I}, 4);
  Tensor y = zeros_f64({N, O}), d_x = zeros_f64({N, I}), d_weight = copy_of(start);
  linear_forward(cpu, y, x, weight);
  linear_backward_input(cpu, d_x, d_y, weight);
  linear_backward_weight(cpu, d_weight, d_y, x);
  const Tensor gpu_x = to_gpu(x, activation()), gpu_weight = to_gpu(weight, activation());
  const Tensor gpu_d_y = to_gpu(d_y, activation());
  Tensor gpu_y = on_gpu({N, O}, activation()), gpu_d_x = on_gpu({N, I}, activation());
  Tensor gpu_d_weight = to_gpu(start, wide());
  linear_forward(gpu, gpu_y, gpu_x, gpu_weight);
  linear_backward_input(gpu, gpu_d_x, gpu_d_y, gpu_weight);
  linear_backward_weight(gpu, gpu_d_weight, gpu_d_y, gpu_x);
  expect_matches(gpu_y, y, "y");
  expect_matches(gpu_d_x, d_x, "d_x");
  expect_matches(gpu_d_weight, d_weight, "d_weight", {5e-6, 1e-4});  // fp32 sums of exact products
}

TEST_P(MatmulCuda, NoRows) {
  const Tensor d_y = on_gpu({0, 8}, activation()), x = on_gpu({0, 16}, activation());
  const Tensor start = random_f64({8, 16}, 1);
  Tensor d_weight = to_gpu(start, wide());
  linear_backward_weight(gpu, d_weight, d_y, x);
  expect_matches(d_weight, start, "d_weight stays");
}

TEST_P(MatmulCuda, SameBits) {
  const Tensor a = to_gpu(random_f64({500, 4096}, 1), activation()),
               b = to_gpu(random_f64({64, 4096}, 2), activation());
  expect_same_bits_every_time([&] {
    Tensor c = on_gpu({500, 64}, activation());
    matmul(gpu, c, a, Transpose::kNo, b, Transpose::kYes);
    return std::vector<Tensor>{c};
  });
}

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

}  // namespace
}  // namespace braid
