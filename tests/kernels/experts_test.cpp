#include "kernels/experts.h"

#include <numeric>

#include "tests/messages.h"
#include "tests/testing.h"

namespace braid {
namespace {

using namespace braid::testing;

struct Problem {
  int64_t R, C, F;
  Tensor rows_per_expert, x, row_gate, d_out;
  ExpertWeights weights;

  Problem(const std::vector<int64_t>& rows, int64_t C, int64_t F, DType dtype, uint64_t seed = 1)
      : R(std::accumulate(rows.begin(), rows.end(), int64_t{0})), C(C), F(F) {
    const auto El = static_cast<int64_t>(rows.size());
    rows_per_expert = tensor_of(rows, {El});
    x = random_normal({R, C}, dtype, seed);
    row_gate = random_normal({R}, dtype, seed + 1, 0.2, 0.5);
    d_out = random_normal({R, C}, dtype, seed + 2);
    weights.gate_up = random_normal({El, 2 * F, C}, dtype, seed + 3, 1 / std::sqrt(C));
    weights.down = random_normal({El, C, F}, dtype, seed + 4, 1 / std::sqrt(F));
  }
};

struct Results {
  Tensor out, gate_up_out, d_x, d_row_gate;
  ExpertWeights d_weights;

  Results(const Problem& p, DType dtype)
      : out(poisoned({p.R, p.C}, dtype)),
        gate_up_out(poisoned({p.R, 2 * p.F}, dtype)),
        d_x(poisoned({p.R, p.C}, dtype)),
        d_row_gate(poisoned({p.R}, dtype)),
        d_weights{zeros(p.weights.gate_up.shape(), dtype), zeros(p.weights.down.shape(), dtype)} {}

  std::vector<Tensor> all() const { return {out, gate_up_out, d_x, d_row_gate, d_weights.gate_up, d_weights.down}; }
};

void forward(const Problem& p, const Results& r) {
  Context ctx = Context::cpu();
  experts_forward(ctx, r.out, r.gate_up_out, p.x, p.row_gate, p.rows_per_expert, p.weights);
}
void backward(const Problem& p, const Results& r, Accumulate accumulate = Accumulate::kYes) {
  Context ctx = Context::cpu();
  const ExpertHidden hidden = {poisoned({p.R, p.F}, p.x.dtype()), poisoned({p.R, 2 * p.F}, p.x.dtype())};
  experts_backward_input(ctx, r.d_x, r.d_row_gate, hidden, p.d_out, p.row_gate, r.gate_up_out, p.rows_per_expert,
                         p.weights);
  experts_backward_weight(ctx, r.d_weights, hidden, p.d_out, p.x, p.rows_per_expert, accumulate);
}
Results run(const Problem& p) {
  Results r(p, p.x.dtype());
  forward(p, r);
  backward(p, r);
  return r;
}

// The definition, one row at a time, in double.
Tensor naive_forward(const Problem& p) {
  Tensor out = zeros_f64({p.R, p.C});
  int64_t r = 0;
  for (int64_t e = 0; e < p.rows_per_expert.numel(); ++e) {
    for (int64_t i = 0; i < p.rows_per_expert.data<int64_t>()[e]; ++i, ++r) {
      for (int64_t f = 0; f < p.F; ++f) {
        double a = 0, b = 0;
        for (int64_t c = 0; c < p.C; ++c) {
          const double xc = value_at(p.x, r * p.C + c);
          a += xc * value_at(p.weights.gate_up, (e * 2 * p.F + f) * p.C + c);
          b += xc * value_at(p.weights.gate_up, (e * 2 * p.F + p.F + f) * p.C + c);
        }
        const double h = value_at(p.row_gate, r) * a / (1 + std::exp(-a)) * b;
        for (int64_t c = 0; c < p.C; ++c)
          out.data<double>()[r * p.C + c] += h * value_at(p.weights.down, (e * p.C + c) * p.F + f);
      }
    }
  }
  return out;
}

TEST(Experts, MatchTheDefinition) {
  for (const auto& rows : {std::vector<int64_t>{3, 0, 5, 1}, {0, 300, 0, 7}, {128, 129, 1}, {0, 0, 4}}) {
    for (DType dtype : {DType::kF32, DType::kF64}) {
      const Problem p(rows, 12, 7, dtype);
      Results r(p, dtype);
      forward(p, r);
      expect_close(r.out, naive_forward(p), dtype == DType::kF32 ? 1e-6 : 1e-14, name_of(dtype));
    }
  }
}

TEST(ExpertsGradient, OverwritesTheWeightsWhereAsked) {
  for (const auto& rows : {std::vector<int64_t>{3, 0, 150, 0}, {0, 0, 0, 0}}) {
    const Problem p(rows, 12, 6, DType::kF64);
    const Results added = run(p);  // to zeros
    Results written(p, DType::kF64);
    written.d_weights = {poisoned(p.weights.gate_up.shape(), DType::kF64),
                         poisoned(p.weights.down.shape(), DType::kF64)};
    forward(p, written);
    backward(p, written, Accumulate::kNo);
    expect_same_bits(written.d_weights.gate_up, added.d_weights.gate_up);
    expect_same_bits(written.d_weights.down, added.d_weights.down);
  }
}

TEST(Experts, WithoutRowsAreNotTouched) {
  const Problem p({0, 4, 0}, 9, 6, DType::kF32);
  // NaN weights and gradients of the experts without rows neither spread nor change.
  Problem poisoned_weights = p;
  Results r(p, DType::kF32);
  auto poison_experts_0_and_2 = [](const Tensor& source) {
    Tensor t = poisoned(source.shape(), DType::kF32);
    std::memcpy(t.rows(1, 2).raw(), source.rows(1, 2).raw(), source.rows(1, 2).bytes());
    return t;
  };
  poisoned_weights.weights = {poison_experts_0_and_2(p.weights.gate_up), poison_experts_0_and_2(p.weights.down)};
  r.d_weights = {poison_experts_0_and_2(r.d_weights.gate_up), poison_experts_0_and_2(r.d_weights.down)};
  forward(poisoned_weights, r);
  backward(poisoned_weights, r);
  const Results expected = run(p);
  expect_same_bits(r.out, expected.out);
  expect_same_bits(r.d_x, expected.d_x);
  auto expect_only_expert_1 = [](const Tensor& actual, const Tensor& clean) {
    expect_same_bits(actual.rows(1, 2), clean.rows(1, 2));
    Tensor untouched = poisoned(actual.rows(0, 1).shape(), DType::kF32);
    expect_same_bits(actual.rows(0, 1), untouched);
    expect_same_bits(actual.rows(2, 3), untouched);
  };
  expect_only_expert_1(r.d_weights.gate_up, expected.d_weights.gate_up);
  expect_only_expert_1(r.d_weights.down, expected.d_weights.down);
}

// What an expert computes depends on its own rows only, not on how many other experts this rank has.
TEST(Experts, GiveTheSameBitsAloneAndTogether) {
  const Problem together({130, 5, 260}, 24, 16, DType::kF32);
  const Results all = run(together);
  int64_t begin = 0;
  for (int64_t e = 0; e < 3; ++e) {
    const int64_t rows = together.rows_per_expert.data<int64_t>()[e], end = begin + rows;
    Problem alone({rows}, 24, 16, DType::kF32);
    alone.x = together.x.rows(begin, end);
    alone.row_gate = together.row_gate.rows(begin, end);
    alone.d_out = together.d_out.rows(begin, end);
    alone.weights = {together.weights.gate_up.rows(e, e + 1), together.weights.down.rows(e, e + 1)};
    const Results one = run(alone);
    expect_same_bits(one.out, all.out.rows(begin, end));
    expect_same_bits(one.d_x, all.d_x.rows(begin, end));
    expect_same_bits(one.d_row_gate, all.d_row_gate.rows(begin, end));
    expect_same_bits(one.d_weights.gate_up, all.d_weights.gate_up.rows(e, e + 1));
    expect_same_bits(one.d_weights.down, all.d_weights.down.rows(e, e + 1));
    begin = end;
  }
}

TEST(Experts, NameTheTensorOfAWrongShapeOrDtype) {
  const Problem good({2, 3}, 8, 4, DType::kF64);
  auto message = [&](auto&& change) {
    Problem p = good;
    Results r(p, DType::kF64);
    change(p, r);
    return message_of([&] { forward(p, r), backward(p, r); });
  };
  EXPECT_EQ(message([](Problem&, Results&) {}), "");
  EXPECT_EQ(message([](Problem& p, Results&) {
              p.rows_per_expert = tensor_of<int64_t>({2, 2}, {2});
            }),
            "rows_per_expert: sums to 4, but x has 5 rows");
  EXPECT_EQ(message([](Problem& p, Results&) {
              p.rows_per_expert = tensor_of<int32_t>({2, 3}, {2});
            }),
            "rows_per_expert: expected dtype I64, got I32");
  EXPECT_EQ(message([](Problem& p, Results&) {
              p.weights.gate_up = zeros_f64({2, 4, 8});
            }),
            "weights.gate_up: expected shape (2, 8, 8), got (2, 4, 8)");
  EXPECT_EQ(message([](Problem&, Results& r) {
              r.gate_up_out = zeros_f64({5, 4});
            }),
            "gate_up_out: expected shape (5, 8), got (5, 4)");
  EXPECT_EQ(message([](Problem&, Results& r) {
              r.d_weights.down = zeros_f64({2, 4, 8});
            }),
            "d_weights.down: expected shape (2, 8, 4), got (2, 4, 8)");
  EXPECT_EQ(message([](Problem& p, Results&) { p.row_gate = zeros({5}, DType::kF32); }),
            "row_gate: expected dtype F64, got F32");
}

}  // namespace
}  // namespace braid
