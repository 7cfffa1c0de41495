#include "kernels/muon.h"

#include "kernels/random.h"
#include "tests/kernels/cuda/cuda_testing.h"

namespace braid {
namespace {

using namespace braid::testing;

// The activation dtype is that of the products and of the weights; masters and gradients are fp32.
class MuonCuda : public CudaTest {
 protected:
  // The fp64 iteration with every result rounded to bf16 is 0.010 to 0.017 off in relative RMS on matrices of normal
  // numbers from 1 x 7 to 256 x 1024, and 0.13 at worst.
  static Tolerance after_newton_schulz() {
    return activation() == DType::kBF16 ? Tolerance{2.5e-2, 0.3} : tolerance_of(DType::kF32);
  }
  // Zero momentum beside these masters.
  MuonState fresh(const Tensor& start, DType moment) {
    const auto [weight, low] = split_on_gpu(start);
    return {weight, to_gpu(zeros_f64(start.shape()), moment), low};
  }
  Tensor master(const MuonState& state) { return masters_of({state.weight, state.low}); }
  static Tensor random(Shape shape, uint64_t seed, double stddev = 1) {
    return converted(random_normal(shape, DType::kF32, seed, stddev), DType::kF64);
  }
};
BRAID_FOR_EACH_ACTIVATION(MuonCuda);

TEST_P(MuonCuda, NewtonSchulzMatchesTheCpu) {
  for (const auto& [M, N] : {std::pair<int64_t, int64_t>{1, 7}, {64, 200}, {200, 64}, {65, 130}, {128, 512}, {5, 3}}) {
    SCOPED_TRACE(::testing::Message() << M << " x " << N);
    Tensor expected = rounded(random({M, N}, 1));
    Tensor actual = to_gpu(expected, activation());
    newton_schulz(cpu, expected);
    newton_schulz(gpu, actual);
    expect_matches(actual, expected, "x", after_newton_schulz());
  }
}

TEST_P(MuonCuda, UpdateMatchesTheCpuAndLeavesOtherRows) {
  struct Case {
    int64_t G, P, C;
    MuonRows rows;
  };
  for (const Case& c : {Case{1, 96, 256, {0, 96}}, {1, 128, 40, {64, 128}}, {4, 32, 100, {8, 24}}, {3, 5, 7, {1, 3}}}) {
    SCOPED_TRACE(::testing::Message() << c.G << " x " << c.P << " x " << c.C);
    for (const DType moment : {DType::kF32, DType::kBF16}) {
      const Shape shape = {c.G, c.P, c.C};
      const Tensor start = random(shape, 1);
      const MuonState expected = {copy_of(start), zeros_f64(shape)};
      const MuonState actual = fresh(start, moment);
      MuonStep step = {.lr = 0.1,
                       .momentum = 0.9,
                       .update_rms = 0.2,
                       .weight_decay = 0.2,
                       .gradient_scale = 0.5,
                       .products = DType::kF64};
      for (int number = 1; number <= 2; ++number) {
        const Tensor gradient = random(shape, 10 + number, 1e-3);
        step.products = DType::kF64;
        muon_update(cpu, expected, gradient, c.rows, step);
        step.products = activation();
        muon_update(gpu, actual, to_gpu(gradient, DType::kF32), c.rows, step);
      }
      const bool narrow = moment == DType::kBF16;
      expect_matches(actual.momentum, expected.momentum, "momentum",
                     narrow ? tolerance_of(DType::kBF16) : tolerance_of(DType::kF32));
      // What the updates changed, not the weight, which is larger.
      auto change = [&](const Tensor& weight) {
        Tensor d = copy_of(weight);
        for (int64_t i = 0; i < d.numel(); ++i) d.data<double>()[i] -= start.data<double>()[i];
        return d;
      };
      Tolerance tolerance = after_newton_schulz();
      if (narrow) tolerance.relative_rms += tolerance_of(DType::kBF16).relative_rms, tolerance.worst += 0.06;
      expect_matches(to_gpu(change(to_cpu(master(actual))), DType::kF32), change(expected.weight), "change", tolerance);
      // Rows of others keep their bits.
      const Tensor weight = to_cpu(master(actual));
      for (int64_t i = 0; i < weight.numel(); ++i) {
        const int64_t row = i / c.C % c.P;
        if (row < c.rows.begin || row >= c.rows.end) ASSERT_EQ(value_at(weight, i), value_at(start, i)) << i;
      }
    }
  }
}

TEST_P(MuonCuda, SameBitsEveryTime) {
  const Shape shape = {2, 96, 130};
  const Tensor start = random(shape, 1), gradient = to_gpu(random(shape, 2), DType::kF32);
  expect_same_bits_every_time([&] {
    const MuonState state = fresh(start, DType::kF32);
    muon_update(gpu, state, gradient, {16, 96}, {0.1, 0.95, 0.2, 0.1, 1, activation()});
    return std::vector<Tensor>{state.weight, state.momentum, master(state)};
  });
}

}  // namespace
}  // namespace braid
