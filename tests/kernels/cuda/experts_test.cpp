#include "kernels/experts.h"

#include <numeric>

#include "tests/kernels/cuda/cuda_testing.h"

namespace braid {
namespace {

using namespace braid::testing;

class ExpertsCuda : public CudaTest {
 protected:
  // Inputs in fp64 with numbers of the activation dtype. The weights of experts without rows are NaN: nothing may read
  // them.
  struct Problem {
    int64_t R, C, F;
    Tensor rows_per_expert, x, row_gate, d_out;
    ExpertWeights weights, d_weights;  // the gradients as they are before

    Problem(const std::vector<int64_t>& rows, int64_t C, int64_t F)
        : R(std::accumulate(rows.begin(), rows.end(), int64_t{0})), C(C), F(F) {
      const auto El = static_cast<int64_t>(rows.size());
      rows_per_expert = tensor_of(rows, {El});
      x = rounded(random_f64({R, C}, 1));
      row_gate = rounded(random_f64({R}, 2, 0.2, 0.5));
      d_out = rounded(random_f64({R, C}, 3));
      weights = {rounded(random_f64({El, 2 * F, C}, 4, 1 / std::sqrt(C))),
                 rounded(random_f64({El, C, F}, 5, 1 / std::sqrt(F)))};
      for (int64_t e = 0; e < El; ++e) {
        if (rows[e] > 0) continue;
        std::fill_n(weights.gate_up.rows(e, e + 1).data<double>(), 2 * F * C, NAN);
        std::fill_n(weights.down.rows(e, e + 1).data<double>(), C * F, NAN);
      }
      d_weights = {random_f64(weights.gate_up.shape(), 6), random_f64(weights.down.shape(), 7)};
    }
  };
  struct Results {
    Tensor out, gate_up_out, d_x, d_row_gate;
    ExpertWeights d_weights;
  };

  // A host tensor with `spare` rows of NaN behind, on the GPU.
  static Tensor with_spare_rows(const Tensor& host, int64_t spare, DType dtype) {
    Shape shape{host.dim(0) + spare};
    for (int axis = 1; axis < host.rank(); ++axis) shape.append(host.dim(axis));
    Tensor padded = poisoned(shape, DType::kF64);
    std::memcpy(padded.raw(), host.raw(), host.bytes());
    return to_gpu(padded, dtype);
  }

  // The GPU gets `spare` more rows than are used. Gradients of weights that are to be overwritten are NaN before.
  Results run_on_gpu(const Problem& p, int64_t spare, Accumulate accumulate = Accumulate::kYes) {
    const int64_t R = p.R + spare;
    const DType a = activation(), w = wide();
    const Tensor x = with_spare_rows(p.x, spare, a), d_out = with_spare_rows(p.d_out, spare, a);
    const Tensor row_gate = with_spare_rows(p.row_gate, spare, w), rows_per_expert = to_gpu(p.rows_per_expert);
    const ExpertWeights weights = {to_gpu(p.weights.gate_up, a), to_gpu(p.weights.down, a)};
    Results r = {on_gpu({R, p.C}, a),
                 on_gpu({R, 2 * p.F}, a),
                 on_gpu({R, p.C}, a),
                 on_gpu({R}, w),
                 {to_gpu(p.d_weights.gate_up, w), to_gpu(p.d_weights.down, w)}};
    if (accumulate == Accumulate::kNo)
      r.d_weights = {on_gpu(p.d_weights.gate_up.shape(), w), on_gpu(p.d_weights.down.shape(), w)};
    experts_forward(gpu, r.out, r.gate_up_out, x, row_gate, rows_per_expert, weights);
    experts_backward(gpu, r.d_x, r.d_row_gate, r.d_weights, d_out, x, row_gate, r.gate_up_out, rows_per_expert, weights,
                     accumulate);
    return r;
  }

  void expect_matches_cpu(const std::vector<int64_t>& rows, int64_t C, int64_t F, int64_t spare) {
    SCOPED_TRACE(::testing::Message() << rows.size() << " experts, C " << C << ", F " << F << ", spare " << spare);
    const Problem p(rows, C, F);
    const Results r = run_on_gpu(p, spare);
    Tensor out = zeros_f64({p.R, C}), gate_up_out = zeros_f64({p.R, 2 * F});
    experts_forward(cpu, out, gate_up_out, p.x, p.row_gate, p.rows_per_expert, p.weights);
    expect_matches(r.gate_up_out.rows(0, p.R), gate_up_out, "gate_up_out");
    expect_matches(r.out.rows(0, p.R), out, "out");
    // Backward of both sides reads the same saved numbers.
    gate_up_out = to_cpu(r.gate_up_out.rows(0, p.R));
    Tensor d_x = zeros_f64({p.R, C}), d_row_gate = zeros_f64({p.R});
    ExpertWeights d_weights = {copy_of(p.d_weights.gate_up), copy_of(p.d_weights.down)};
    experts_backward(cpu, d_x, d_row_gate, d_weights, p.d_out, p.x, p.row_gate, gate_up_out, p.rows_per_expert,
                     p.weights);
    expect_matches(r.d_x.rows(0, p.R), d_x, "d_x");
    expect_matches(r.d_row_gate.rows(0, p.R), d_row_gate, "d_row_gate");
    expect_matches(r.d_weights.gate_up, d_weights.gate_up, "d_weights.gate_up");
    expect_matches(r.d_weights.down, d_weights.down, "d_weights.down");
    // Written instead of added.
    const Results written = run_on_gpu(p, spare, Accumulate::kNo);
    auto without_start = [](const Tensor& sum, const Tensor& start) {
      Tensor difference = copy_of(sum);
      for (int64_t i = 0; i < sum.numel(); ++i) difference.data<double>()[i] -= start.data<double>()[i];
      return difference;
    };
    expect_matches(written.d_weights.gate_up, without_start(d_weights.gate_up, p.d_weights.gate_up), "written gate_up");
    expect_matches(written.d_weights.down, without_start(d_weights.down, p.d_weights.down), "written down");
    for (const Tensor& t : {r.out, r.gate_up_out, r.d_x, r.d_row_gate}) {
      const Tensor rest = to_cpu(t);
      for (int64_t i = rest.numel() / (p.R + spare) * p.R; i < rest.numel(); ++i)
        ASSERT_TRUE(std::isnan(value_at(rest, i))) << "a row that no expert has was written";
    }
  }

  void expect_multiples_of_eight_match() {
    for (const auto& rows :
         {std::vector<int64_t>{1}, {3, 0, 5, 1}, {0, 300, 0, 7}, {128, 129, 1}, {0, 0, 4}, {127, 256}}) {
      expect_matches_cpu(rows, 8, 8, 0);
      expect_matches_cpu(rows, 72, 40, 3);
      expect_matches_cpu(rows, 128, 64, 0);
      expect_matches_cpu(rows, 264, 200, 130);
    }
  }
};
BRAID_FOR_EACH_ACTIVATION(ExpertsCuda);

TEST_P(ExpertsCuda, OddSizes) {
  for (const auto& rows : {std::vector<int64_t>{1}, {3, 0, 5, 1}, {0, 300, 0, 7}, {128, 129, 1}, {0, 0, 4}}) {
    expect_matches_cpu(rows, 12, 7, 0);
    expect_matches_cpu(rows, 75, 33, 3);
    expect_matches_cpu(rows, 150, 70, 200);
  }
}

TEST_P(ExpertsCuda, MultiplesOfEight) { expect_multiples_of_eight_match(); }

TEST_P(ExpertsCuda, RealSizes) { expect_matches_cpu({150, 0, 1, 64, 257}, 2048, 512, 40); }

TEST_P(ExpertsCuda, PortableKernels) {
  const PortableKernels portable(gpu);
  expect_multiples_of_eight_match();
  expect_matches_cpu({150, 0, 1, 64, 257}, 2048, 512, 40);
}

TEST_P(ExpertsCuda, ManyExperts) {
  std::vector<int64_t> rows(1500);
  for (size_t e = 0; e < rows.size(); ++e) rows[e] = e % 9 == 4 ? 130 : e % 3;
  expect_matches_cpu(rows, 16, 8, 77);
}

TEST_P(ExpertsCuda, NoRowsAtAll) {
  const Problem p({0, 0, 0}, 16, 8);
  const Results r = run_on_gpu(p, 5);  // the bound says 5, but there are none
  expect_matches(r.d_weights.gate_up, p.d_weights.gate_up, "d_weights.gate_up");
  expect_matches(r.d_weights.down, p.d_weights.down, "d_weights.down");
  const Tensor out = to_cpu(r.out);
  for (int64_t i = 0; i < out.numel(); ++i) EXPECT_TRUE(std::isnan(value_at(out, i)));
  const Results written = run_on_gpu(p, 5, Accumulate::kNo);
  expect_matches(written.d_weights.gate_up, zeros_f64(p.d_weights.gate_up.shape()), "written gate_up");
  expect_matches(written.d_weights.down, zeros_f64(p.d_weights.down.shape()), "written down");
}

TEST_P(ExpertsCuda, SameBits) {
  const Problem p({200, 0, 31, 129, 700}, 256, 136);
  expect_same_bits_every_time([&] {
    const Results r = run_on_gpu(p, 0);
    const Results w = run_on_gpu(p, 0, Accumulate::kNo);
    return std::vector<Tensor>{
        r.out,           r.gate_up_out, r.d_x, r.d_row_gate, r.d_weights.gate_up, r.d_weights.down, w.d_weights.gate_up,
        w.d_weights.down};
  });
}

}  // namespace
}  // namespace braid
