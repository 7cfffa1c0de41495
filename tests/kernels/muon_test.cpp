#include "kernels/muon.h"

#include "kernels/split_weights.h"
#include "tests/kernels/muon_reference.h"
#include "tests/messages.h"
#include "tests/testing.h"

namespace braid {
namespace {

using namespace braid::testing;

Matrix matrix_of(const Tensor& t) {
  Matrix m(t.dim(0), std::vector<double>(t.dim(1)));
  for (int64_t i = 0; i < t.numel(); ++i) m[i / t.dim(1)][i % t.dim(1)] = value_at(t, i);
  return m;
}
Tensor tensor_of_matrix(const Matrix& m) {
  Tensor t = zeros_f64({int64_t(m.size()), int64_t(m[0].size())});
  for (int64_t i = 0; i < t.numel(); ++i) t.data<double>()[i] = m[i / m[0].size()][i % m[0].size()];
  return t;
}

// Rows that are orthogonal and of length 1.
Matrix orthonormal_rows(int64_t M, int64_t N, uint64_t seed) {
  Matrix rows = matrix_of(random_f64({M, N}, seed));
  for (int64_t i = 0; i < M; ++i) {
    for (int again = 0; again < 2; ++again)
      for (int64_t j = 0; j < i; ++j) {
        double dot = 0;
        for (int64_t k = 0; k < N; ++k) dot += rows[i][k] * rows[j][k];
        for (int64_t k = 0; k < N; ++k) rows[i][k] -= dot * rows[j][k];
      }
    double norm = 0;
    for (double value : rows[i]) norm += value * value;
    for (double& value : rows[i]) value /= std::sqrt(norm);
  }
  return rows;
}

// From a matrix with known singular values: the vectors stay, the values go through the scalar iteration, to near 1.
TEST(NewtonSchulz, ChangesOnlyTheSingularValues) {
  for (const auto& [M, N] : {std::pair<int64_t, int64_t>{5, 12}, {12, 5}, {7, 7}, {1, 6}, {130, 65}}) {
    SCOPED_TRACE(::testing::Message() << M << " x " << N);
    const int64_t m = std::min(M, N);
    const Matrix left = transposed(orthonormal_rows(m, M, 1)), right = orthonormal_rows(m, N, 2);  // (M, m), (m, N)
    Matrix before = left, after = left;
    double norm = 0;
    auto singular_value = [&](int64_t i) { return 3.0 / (1 + i % 20); };
    for (int64_t i = 0; i < m; ++i) norm += singular_value(i) * singular_value(i);
    for (int64_t i = 0; i < m; ++i) {
      double s = singular_value(i) / (std::sqrt(norm) + 1e-7);
      for (int step = 0; step < 5; ++step) s = 3.4445 * s - 4.7750 * std::pow(s, 3) + 2.0315 * std::pow(s, 5);
      if (m < 20) {
        EXPECT_GT(s, 0.65);
        EXPECT_LT(s, 1.25);
      }
      for (int64_t row = 0; row < M; ++row) {
        before[row][i] *= singular_value(i);
        after[row][i] *= s;
      }
    }
    for (DType dtype : {DType::kF64, DType::kF32}) {
      Tensor x = converted(tensor_of_matrix(product(before, right)), dtype);
      Context ctx = Context::cpu();
      newton_schulz(ctx, x);
      expect_close(x, converted(tensor_of_matrix(product(after, right)), dtype), dtype == DType::kF64 ? 1e-12 : 2e-5);
    }
  }
}

TEST(NewtonSchulz, AZeroMatrixStaysZero) {
  Context ctx = Context::cpu();
  Tensor x = zeros({3, 4}, DType::kF32);
  newton_schulz(ctx, x);
  expect_same_bits(x, zeros({3, 4}, DType::kF32));
}

TEST(NewtonSchulz, RefusesOtherDtypes) {
  Context ctx = Context::cpu();
  EXPECT_THROW(newton_schulz(ctx, zeros({3, 4}, DType::kI64)), DTypeError);
}

struct Case {
  int64_t G, P, C;
  MuonRows rows;
};
std::vector<Case> cases() {
  return {{1, 4, 9, {0, 4}}, {1, 11, 3, {0, 11}}, {3, 5, 7, {1, 3}}, {4, 6, 5, {0, 3}}, {4, 6, 5, {3, 6}}};
}
// The rows of a case as one matrix, and back.
Matrix rows_of(const Case& c, const Tensor& whole) {
  Matrix m;
  for (int64_t g = 0; g < c.G; ++g)
    for (int64_t p = c.rows.begin; p < c.rows.end; ++p) {
      m.emplace_back();
      for (int64_t i = 0; i < c.C; ++i) m.back().push_back(value_at(whole, (g * c.P + p) * c.C + i));
    }
  return m;
}
void set_rows(const Case& c, Tensor& whole, const Matrix& m) {
  const int64_t per_group = c.rows.end - c.rows.begin;
  for (int64_t row = 0; row < int64_t(m.size()); ++row)
    for (int64_t i = 0; i < c.C; ++i)
      whole.data<double>()[(row / per_group * c.P + c.rows.begin + row % per_group) * c.C + i] = m[row][i];
}

TEST(Muon, FollowsTheDefinitionAndLeavesOtherRows) {
  Context ctx = Context::cpu();
  for (const Case& c : cases()) {
    for (DType dtype : {DType::kF64, DType::kF32}) {
      const Shape shape = {c.G, c.P, c.C};
      Tensor expected_weight = random_f64(shape, 1), expected_momentum = zeros_f64(shape);
      const MuonState state = {converted(expected_weight, dtype), converted(expected_momentum, dtype)};
      for (int step = 1; step <= 4; ++step) {
        const Tensor gradient = random_f64(shape, 10 + step, 1e-3);
        const MuonReference reference{.lr = 0.1 / step, .mu = 0.9, .rms = 0.3, .decay = 0.2, .scale = 0.5};
        Matrix momentum = rows_of(c, expected_momentum);
        set_rows(c, expected_weight, reference.update(rows_of(c, expected_weight), momentum, rows_of(c, gradient)));
        set_rows(c, expected_momentum, momentum);
        muon_update(ctx, state, converted(gradient, dtype), c.rows,
                    {.lr = 0.1 / step,
                     .momentum = 0.9,
                     .update_rms = 0.3,
                     .weight_decay = 0.2,
                     .gradient_scale = 0.5,
                     .products = dtype});
        const double tolerance = dtype == DType::kF64 ? 1e-12 : 1e-5;
        expect_close(state.weight, expected_weight, tolerance, "weight");
        expect_close(state.momentum, expected_momentum, dtype == DType::kF64 ? 1e-14 : 1e-6, "momentum");
      }
    }
  }
}

TEST(Muon, TheSizeOfTheGradientDoesNotMatter) {
  Context ctx = Context::cpu();
  const Tensor start = random_f64({1, 6, 9}, 1), gradient = random_f64({1, 6, 9}, 2);
  auto updated = [&](double scale) {
    Tensor weight = copy_of(start);
    muon_update(ctx, {weight, zeros_f64({1, 6, 9})}, gradient, {0, 6}, {0.1, 0.95, 0.2, 0, scale, DType::kF64});
    return weight;
  };
  expect_close(updated(1e3), updated(1), 1e-6);
}

TEST(Muon, WithoutGradientsOnlyDecays) {
  Context ctx = Context::cpu();
  Tensor weight = random_f64({2, 3, 4}, 1);
  const Tensor start = copy_of(weight);
  muon_update(ctx, {weight, zeros_f64({2, 3, 4})}, zeros_f64({2, 3, 4}), {0, 3}, {0.1, 0.95, 0.2, 0.5, 1, DType::kF64});
  for (int64_t i = 0; i < weight.numel(); ++i)
    EXPECT_NEAR(value_at(weight, i), value_at(start, i) * (1 - 0.1 * 0.5), 1e-15);
}

// A bf16 weight beside its low bits is an fp32 master, to the last bit.
TEST(Muon, SplitMastersAreThoseInFp32) {
  Context ctx = Context::cpu();
  const Shape shape = {2, 5, 4100};
  const Tensor start = random_normal(shape, DType::kF32, 1), gradient = random_normal(shape, DType::kF32, 2);
  const MuonStep step = {0.1, 0.95, 0.2, 0.1, 1, DType::kF32};
  const MuonState plain = {copy_of(start), zeros(shape, DType::kF32)};
  const MuonState split = {zeros(shape, DType::kBF16), zeros(shape, DType::kF32),
                           zeros(shape_of_low_bits(shape), DType::kU8)};
  split_weights(ctx, split.weight, split.low, start);
  for (int number = 0; number < 3; ++number) {
    muon_update(ctx, plain, gradient, {1, 4}, step);
    muon_update(ctx, split, gradient, {1, 4}, step);
  }
  Tensor joined = zeros(shape, DType::kF32);
  join_weights(ctx, joined, split.weight, split.low);
  expect_same_bits(joined, plain.weight, "master");
  expect_same_bits(split.momentum, plain.momentum, "momentum");
}

TEST(Muon, SameBitsForEveryThreadCount) {
  expect_same_bits_for_every_thread_count([] {
    Context ctx = Context::cpu();
    const Shape shape = {2, 140, 300};
    const MuonState state = {random_normal(shape, DType::kF32, 1), random_normal(shape, DType::kF32, 2)};
    muon_update(ctx, state, random_normal(shape, DType::kF32, 3), {10, 140}, {0.1, 0.95, 0.2, 0.1, 1, DType::kF32});
    return std::vector<Tensor>{state.weight, state.momentum};
  });
}

TEST(Muon, NamesTheTensorOfAWrongShapeOrDtype) {
  Context ctx = Context::cpu();
  const Tensor right = zeros_f64({2, 3, 4}), shape = zeros_f64({2, 3, 5}), dtype = zeros({2, 3, 4}, DType::kF32);
  const MuonStep step = {0.1, 0.95, 0.2, 0.1, 1, DType::kF64};
  auto message = [&](MuonState state, const Tensor& gradient) {
    return message_of([&] { muon_update(ctx, state, gradient, {0, 3}, step); });
  };
  EXPECT_EQ(message({right, shape}, right).substr(0, 8), "momentum");
  EXPECT_EQ(message({right, right}, shape).substr(0, 8), "gradient");
  EXPECT_EQ(message({right, right, shape}, right).substr(0, 3), "low");
  EXPECT_EQ(message({right, dtype}, right).substr(0, 8), "momentum");
  EXPECT_EQ(message({right, right}, dtype).substr(0, 8), "gradient");
  EXPECT_EQ(message({right, right}, right), "");
}

}  // namespace
}  // namespace braid
