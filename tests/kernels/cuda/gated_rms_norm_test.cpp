#include "kernels/gated_rms_norm.h"

#include "tests/kernels/cuda/cuda_testing.h"

namespace braid {
namespace {

using namespace braid::testing;

struct Case {
  int64_t N;
  GdnDims dims;
};

class GatedRmsNormCuda : public CudaTest {
 protected:
  // Heads of 128 elements as in the real models, also fewer heads than a block has rows, one or several tiles of
  // tokens; heads of other sizes; heads of 128 whose gates lie where no vector can be read.
  static std::vector<Case> cases() {
    return {{1, {16, 32, 128, 128, 4}}, {70, {16, 32, 128, 128, 4}}, {33, {1, 3, 128, 128, 4}},
            {40, {2, 10, 64, 128, 4}},  {70, {2, 4, 3, 5, 4}},       {9, {1, 2, 64, 200, 4}},
            {50, {3, 3, 5, 128, 4}}};
  }
  static constexpr double kEps = 1e-6;
};
BRAID_FOR_EACH_ACTIVATION(GatedRmsNormCuda);

TEST_P(GatedRmsNormCuda, ForwardAndBackward) {
  for (const auto& [N, dims] : cases()) {
    const int64_t Hv = dims.value_heads, Dv = dims.value_dim;
    SCOPED_TRACE(std::to_string(N) + " tokens, heads " + std::to_string(Hv) + " x " + std::to_string(Dv));
    const Tensor o = rounded(random_f64({N, Hv, Dv}, 1, 2)), qkvz = rounded(random_f64({N, dims.qkvz_columns()}, 2, 3));
    const Tensor d_y = rounded(random_f64({N, Hv, Dv}, 3)), weight = random_f64({Dv}, 4, 0.5, 1);
    const Tensor start = random_f64({Dv}, 5), d_qkvz_start = rounded(random_f64(qkvz.shape(), 6));
    Tensor y = zeros_f64({N, Hv, Dv}), rstd = zeros_f64({N, Hv}), d_o = zeros_f64({N, Hv, Dv});
    Tensor d_qkvz = copy_of(d_qkvz_start), d_weight = copy_of(start);
    gated_rms_norm_forward(cpu, y, rstd, o, qkvz, weight, kEps, dims);
    gated_rms_norm_backward(cpu, d_o, d_qkvz, d_weight, d_y, o, rstd, qkvz, weight, dims);

    const Tensor gpu_o = to_gpu(o, activation()), gpu_qkvz = to_gpu(qkvz, activation());
    const Tensor gpu_weight = to_gpu(weight, wide());
    Tensor gpu_y = on_gpu({N, Hv, Dv}, activation()), gpu_rstd = on_gpu({N, Hv}, wide());
    gated_rms_norm_forward(gpu, gpu_y, gpu_rstd, gpu_o, gpu_qkvz, gpu_weight, kEps, dims);
    expect_matches(gpu_y, y, "y");
    expect_matches(gpu_rstd, rstd, "rstd", tolerance_of(DType::kF32));

    Tensor gpu_d_o = on_gpu({N, Hv, Dv}, activation()), gpu_d_qkvz = to_gpu(d_qkvz_start, activation());
    Tensor gpu_d_weight = to_gpu(start, wide());
    gated_rms_norm_backward(gpu, gpu_d_o, gpu_d_qkvz, gpu_d_weight, to_gpu(d_y, activation()), gpu_o, gpu_rstd,
                            gpu_qkvz, gpu_weight, dims);
    expect_matches(gpu_d_o, d_o, "d_o");
    expect_matches(gpu_d_qkvz, d_qkvz, "d_qkvz, whose other columns stay");
    expect_matches(gpu_d_weight, d_weight, "d_weight", tolerance_of(DType::kF32));
  }
}

TEST_P(GatedRmsNormCuda, SameBits) {
  for (const GdnDims& dims : {GdnDims{16, 32, 128, 128, 4}, GdnDims{2, 4, 24, 40, 4}}) {
    const int64_t N = 500, Hv = dims.value_heads, Dv = dims.value_dim;
    const Tensor o = to_gpu(random_f64({N, Hv, Dv}, 1), activation()), weight = to_gpu(random_f64({Dv}, 4), wide());
    const Tensor qkvz = to_gpu(random_f64({N, dims.qkvz_columns()}, 2), activation());
    const Tensor d_y = to_gpu(random_f64({N, Hv, Dv}, 3), activation());
    const Tensor zeros = zeros_f64(qkvz.shape());
    expect_same_bits_every_time([&] {
      Tensor y = on_gpu({N, Hv, Dv}, activation()), rstd = on_gpu({N, Hv}, wide());
      Tensor d_o = on_gpu({N, Hv, Dv}, activation()), d_qkvz = to_gpu(zeros, activation());
      Tensor d_weight = to_gpu(zeros_f64({Dv}), wide());
      gated_rms_norm_forward(gpu, y, rstd, o, qkvz, weight, kEps, dims);
      gated_rms_norm_backward(gpu, d_o, d_qkvz, d_weight, d_y, o, rstd, qkvz, weight, dims);
      return std::vector<Tensor>{y, rstd, d_o, d_qkvz, d_weight};
    });
  }
}

}  // namespace
}  // namespace braid
