#pragma once

#include "kernels/core/arena.h"
#include "kernels/core/copy.h"
#include "kernels/core/float_types.h"
#include "kernels/core/memory.h"
#include "kernels/core/segments.h"
#include "kernels/split_weights.h"
#include "tests/testing.h"

// Operators on the GPU, held to the CPU. A test makes its inputs as fp64 tensors on the CPU, runs the CPU operator on
// them, runs the GPU operator on copies of them in the activation dtype, and compares:
//
//   TEST_P(RmsNormCuda, Forward) {
//     Tensor x = rounded(random_f64({300, 96}, 1)), weight = random_f64({96}, 2);   // x holds numbers of the dtype
//     Tensor y = zeros_f64({300, 96}), rstd = zeros_f64({300});
//     rms_norm_forward(cpu, y, rstd, x, weight, 1e-6);
//     Tensor gpu_y = on_gpu(y.shape(), activation()), gpu_rstd = on_gpu(rstd.shape(), wide());
//     rms_norm_forward(gpu, gpu_y, gpu_rstd, to_gpu(x, activation()), to_gpu(weight, wide()), 1e-6);
//     expect_matches(gpu_y, y, "y");
//     expect_matches(gpu_rstd, rstd, "rstd");
//   }
namespace braid::testing {

// One per process; a test that needs a GPU is skipped where there is none.
Context* gpu_context();

// How far a GPU result may be from the CPU's in fp64: relative RMS error (more where few elements make the mean), and
// for every element so many times the RMS of the expected tensor and so much of itself. With bf16 activations a result
// carries its own rounding, up to 2^-8 of itself, and that of its factors.
struct Tolerance {
  double relative_rms, worst, of_element = 0;
};
inline Tolerance tolerance_of(DType activation) {
  return activation == DType::kBF16 ? Tolerance{6e-3, 6e-2, 0x1p-7} : Tolerance{5e-6, 1e-4};
}

class CudaTest : public ::testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    if (!gpu_context()) GTEST_SKIP() << "there is no GPU here";
  }
  static DType activation() { return GetParam(); }
  static DType wide() { return wide_dtype(GetParam()); }

  // The tensor (fp64, CPU) with every number rounded to the activation dtype, so that both sides read the same.
  static Tensor rounded(Tensor t) {
    for (int64_t i = 0; i < t.numel(); ++i) {
      double& x = t.data<double>()[i];
      x = activation() == DType::kBF16 ? double(float(BFloat16(float(x)))) : double(float(x));
    }
    return t;
  }

  // GPU memory that lives until the process ends. `on_gpu` fills it with NaN, so that what a kernel leaves out shows.
  static Tensor on_gpu(Shape shape, DType dtype);
  static Tensor to_gpu(const Tensor& host, DType dtype);  // converted, if the host tensor is fp64 and dtype is not
  static Tensor to_gpu(const Tensor& host) { return to_gpu(host, host.dtype()); }
  static Segments to_gpu(Segments segments);
  static Tensor to_cpu(const Tensor& device);  // floats as fp64

  // Weights on the GPU in the activation dtype with these fp32 masters (`low` where they are bf16), and their masters.
  struct SplitWeights {
    Tensor weight, low;
  };
  SplitWeights split_on_gpu(const Tensor& masters) {
    SplitWeights split = {on_gpu(masters.shape(), activation()), {}};
    if (activation() == DType::kBF16) split.low = on_gpu(shape_of_low_bits(masters.shape()), DType::kU8);
    split_weights(gpu, split.weight, split.low, to_gpu(masters, DType::kF32));
    return split;
  }
  Tensor masters_of(const SplitWeights& split) {
    const Tensor joined = on_gpu(split.weight.shape(), DType::kF32);
    join_weights(gpu, joined, split.weight, split.low);
    return joined;
  }

  // `actual` on the GPU in any dtype, `expected` in fp64 on the CPU.
  void expect_matches(const Tensor& actual, const Tensor& expected, const char* what) {
    expect_matches(actual, expected, what, tolerance_of(activation()));
  }
  static void expect_matches(const Tensor& actual, const Tensor& expected, const char* what, Tolerance tolerance);

  // Runs `body` again and again, and expects it to return tensors (on the GPU) with the same bits each time.
  static void expect_same_bits_every_time(const std::function<std::vector<Tensor>()>& body, int repeats = 5);

  Context cpu = Context::cpu();
  Context& gpu = *gpu_context();
};

// While it lives, operators on this GPU take the kernels of a GPU of compute capability 8.0, which run on every later
// one.
class PortableKernels {
 public:
  explicit PortableKernels(Context& gpu);
  ~PortableKernels();

 private:
  Context& gpu_;
  int compute_capability_;
};

inline std::string activation_name(const ::testing::TestParamInfo<DType>& info) { return name_of(info.param); }

// Runs every TEST_P of a suite with fp32 and with bf16 activations.
#define BRAID_FOR_EACH_ACTIVATION(Suite) \
  INSTANTIATE_TEST_SUITE_P(Activations, Suite, ::testing::Values(DType::kF32, DType::kBF16), activation_name)

}  // namespace braid::testing
