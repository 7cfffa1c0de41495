#include "kernels/rms_norm.h"

#include "tests/kernels/cuda/cuda_testing.h"

namespace braid {
namespace {

using namespace braid::testing;

class RmsNormCuda : public CudaTest {
 protected:
  // Rows, columns: one row, rows held in registers (whole and part of the lanes), longer ones, and ones that do not
  // allow vectors; more than one tile of rows.
  static constexpr std::pair<int64_t, int64_t> kSizes[] = {{1, 2048}, {70, 2048}, {33, 8},   {100, 264},
                                                           {5, 4096}, {600, 37},  {3, 5001}, {1100, 1}};
  static constexpr double kEps = 1e-6;
};
BRAID_FOR_EACH_ACTIVATION(RmsNormCuda);

// The sum that a norm reads back is rounded; so is the CPU's, for the rest to be compared.
TEST_P(RmsNormCuda, Forward) {
  for (const auto& [N, C] : kSizes) {
    SCOPED_TRACE(std::to_string(N) + " x " + std::to_string(C));
    const Tensor x = rounded(random_f64({N, C}, 1, 3)), delta = rounded(random_f64({N, C}, 2));
    const Tensor weight = converted(converted(random_f64({C}, 3, 0.3), DType::kF32), DType::kF64);
    Tensor y = zeros_f64({N, C}), sum = zeros_f64({N, C}), rstd = zeros_f64({N});
    rms_norm_forward(cpu, y, rstd, x, weight, kEps);
    Tensor gpu_y = on_gpu({N, C}, activation()), gpu_rstd = on_gpu({N}, wide());
    const Tensor gpu_x = to_gpu(x, activation()), gpu_weight = to_gpu(weight, wide());
    rms_norm_forward(gpu, gpu_y, gpu_rstd, gpu_x, gpu_weight, kEps);
    expect_matches(gpu_y, y, "y");
    expect_matches(gpu_rstd, rstd, "rstd", tolerance_of(DType::kF32));

    add_rms_norm_forward(cpu, y, sum, rstd, x, delta, weight, kEps);
    rms_norm_forward(cpu, y, rstd, rounded(sum), weight, kEps);
    Tensor gpu_sum = on_gpu({N, C}, activation());
    gpu_y = on_gpu({N, C}, activation()), gpu_rstd = on_gpu({N}, wide());
    add_rms_norm_forward(gpu, gpu_y, gpu_sum, gpu_rstd, gpu_x, to_gpu(delta, activation()), gpu_weight, kEps);
    expect_matches(gpu_sum, sum, "sum");
    expect_matches(gpu_y, y, "y of the sum");
    expect_matches(gpu_rstd, rstd, "rstd of the sum", tolerance_of(DType::kF32));
  }
}

TEST_P(RmsNormCuda, MayAddInPlace) {
  for (const auto& [N, C] : kSizes) {
    const Tensor x = to_gpu(random_f64({N, C}, 1), activation()), delta = to_gpu(random_f64({N, C}, 2), activation());
    const Tensor weight = to_gpu(random_f64({C}, 3), wide());
    Tensor y = on_gpu({N, C}, activation()), sum = on_gpu({N, C}, activation()), rstd = on_gpu({N}, wide());
    add_rms_norm_forward(gpu, y, sum, rstd, x, delta, weight, kEps);
    Tensor y_in_place = on_gpu({N, C}, activation()), rstd_in_place = on_gpu({N}, wide());
    add_rms_norm_forward(gpu, y_in_place, x, rstd_in_place, x, delta, weight, kEps);
    expect_same_bits(to_cpu(x), to_cpu(sum), "sum");
    expect_same_bits(to_cpu(y_in_place), to_cpu(y), "y");
    expect_same_bits(to_cpu(rstd_in_place), to_cpu(rstd), "rstd");
  }
}

TEST_P(RmsNormCuda, Backward) {
  for (const auto& [N, C] : kSizes) {
    SCOPED_TRACE(std::to_string(N) + " x " + std::to_string(C));
    const Tensor x = rounded(random_f64({N, C}, 1, 3)), d_y = rounded(random_f64({N, C}, 2));
    const Tensor weight = random_f64({C}, 3, 0.3), start = random_f64({C}, 4), stream = rounded(random_f64({N, C}, 5));
    Tensor y = zeros_f64({N, C}), rstd = zeros_f64({N}), d_x = zeros_f64({N, C}), d_weight = copy_of(start);
    Tensor d_sum = copy_of(stream), d_weight_of_sum = copy_of(start);
    rms_norm_forward(cpu, y, rstd, x, weight, kEps);
    rms_norm_backward(cpu, d_x, d_weight, d_y, x, weight, rstd);
    add_rms_norm_backward(cpu, d_sum, d_weight_of_sum, d_y, x, weight, rstd);

    const Tensor gpu_x = to_gpu(x, activation()), gpu_d_y = to_gpu(d_y, activation());
    const Tensor gpu_weight = to_gpu(weight, wide()), gpu_rstd = to_gpu(rstd, wide());
    Tensor gpu_d_x = on_gpu({N, C}, activation()), gpu_d_weight = to_gpu(start, wide());
    rms_norm_backward(gpu, gpu_d_x, gpu_d_weight, gpu_d_y, gpu_x, gpu_weight, gpu_rstd);
    // With one column, or nearly, d_x is a difference of almost equal numbers, the size of eps.
    if (C > 1) expect_matches(gpu_d_x, d_x, "d_x");
    expect_matches(gpu_d_weight, d_weight, "d_weight", tolerance_of(DType::kF32));

    Tensor gpu_d_sum = to_gpu(stream, activation()), gpu_d_weight_of_sum = to_gpu(start, wide());
    add_rms_norm_backward(gpu, gpu_d_sum, gpu_d_weight_of_sum, gpu_d_y, gpu_x, gpu_weight, gpu_rstd);
    expect_matches(gpu_d_sum, d_sum, "d_sum");
    expect_matches(gpu_d_weight_of_sum, d_weight_of_sum, "d_weight of the sum", tolerance_of(DType::kF32));
  }
}

TEST_P(RmsNormCuda, SameBits) {
  for (const int64_t C : {2048, 333}) {
    const int64_t N = 3000;
    const Tensor x = to_gpu(random_f64({N, C}, 1), activation()), d_y = to_gpu(random_f64({N, C}, 2), activation());
    const Tensor weight = to_gpu(random_f64({C}, 3), wide());
    expect_same_bits_every_time([&] {
      Tensor y = on_gpu({N, C}, activation()), rstd = on_gpu({N}, wide()), d_x = on_gpu({N, C}, activation());
      Tensor d_weight = to_gpu(zeros_f64({C}), wide());
      rms_norm_forward(gpu, y, rstd, x, weight, kEps);
      rms_norm_backward(gpu, d_x, d_weight, d_y, x, weight, rstd);
      return std::vector<Tensor>{y, rstd, d_x, d_weight};
    });
  }
}

TEST_P(RmsNormCuda, NoRows) {
  const Tensor x = on_gpu({0, 8}, activation()), weight = to_gpu(random_f64({8}, 1), wide());
  const Tensor start = random_f64({8}, 2);
  Tensor rstd = on_gpu({0}, wide()), d_weight = to_gpu(start, wide());
  rms_norm_forward(gpu, x, rstd, x, weight, kEps);
  rms_norm_backward(gpu, x, d_weight, x, x, weight, rstd);
  expect_matches(d_weight, start, "d_weight stays", tolerance_of(DType::kF32));
}

TEST_P(RmsNormCuda, KeepsStatisticsWide) {
  const Tensor x = on_gpu({2, 8}, activation()), weight = on_gpu({8}, DType::kBF16);
  EXPECT_THROW(rms_norm_forward(gpu, x, on_gpu({2}, wide()), x, weight, kEps), DTypeError);
}

}  // namespace
}  // namespace braid
