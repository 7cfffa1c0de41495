// What every operator is held to on the CPU, in every variant of its case.
#include <algorithm>

#include "kernels/cases/operator_case.h"
#include "tests/kernels/cases_testing.h"
#include "tests/testing.h"

namespace braid::cases {
namespace {

using namespace braid::testing;
using Role = Trial::Role;

class Cases : public ::testing::TestWithParam<const OperatorCase*> {
 protected:
  // Of the sizes of the released model some would take a CPU minutes; what a GPU may do otherwise there, a CPU does
  // not.
  static constexpr int64_t kMostVariantBytes = int64_t{4} << 20;

  template <class Body>
  void for_each_hard(Body&& body) {
    for (const Variant& variant : hard_variants(*GetParam(), kMostVariantBytes)) {
      SCOPED_TRACE(concat(GetParam()->name, ": ", variant.label));
      body(variant);
    }
  }
};
BRAID_FOR_EACH_CASE(Cases);

Trial declared(Context& cpu, DType dtype, const Variant& variant) {
  Trial t = Trial::of(cpu, dtype);
  variant.declare(t);
  return t;
}

// The sum of all y * d_y, where what is added to starts at 0.
double loss_of(Trial& t) {
  for (const Trial::Step& step : t.steps())
    if (step.is_forward) t.run(step, Trial::Starts::kZero);
  double sum = 0;
  for (const auto& [y, d_y] : t.losses()) {
    const Trial::Slot& slot = t.slot(d_y);
    sum += dot(t.slot(y).tensor, slot.role == Role::kInOut ? slot.start : slot.tensor);
  }
  return sum;
}

// Central differences of fourth order, so that the step can be large and rounding small.
double difference_along(const std::function<void(double)>& move_to, const std::function<double()>& loss, double step) {
  auto at = [&](double offset) {
    move_to(offset);
    return loss();
  };
  const double slope = (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step);
  move_to(0);
  return slope;
}

constexpr double kStep = 1e-4;
constexpr int64_t kMostElements = 600;              // of a tensor that is taken element by element,
constexpr int64_t kMostBytes = int64_t{256} << 10;  // in a variant no larger than this

// `gradient` against the loss's differences by every element of x, or, where these are too many, along a random
// direction: then the error is that of the whole gradient times a number of about 1.
void expect_slope(Trial& t, Tensor x, const Tensor& gradient, const char* name) {
  const Tensor original = copy_of(x);
  auto loss = [&] { return loss_of(t); };
  if (x.numel() <= kMostElements && t.bytes() <= kMostBytes) {
    Tensor numeric = zeros_f64(x.shape());
    for (int64_t i = 0; i < x.numel(); ++i)
      numeric.data<double>()[i] = difference_along(
          [&](double offset) { x.data<double>()[i] = original.data<double>()[i] + offset; }, loss, kStep);
    EXPECT_LE(relative_rms(gradient, numeric), t.gradient_error()) << name;
    return;
  }
  const Tensor direction = random_f64(x.shape(), 99);
  const double numeric = difference_along(
      [&](double offset) {
        for (int64_t i = 0; i < x.numel(); ++i)
          x.data<double>()[i] = original.data<double>()[i] + offset * direction.data<double>()[i];
      },
      loss, kStep);
  EXPECT_NEAR(dot(gradient, direction), numeric, t.gradient_error() * std::sqrt(dot(gradient, gradient))) << name;
}

TEST_P(Cases, GradientsAreThoseOfCentralDifferences) {
  Context cpu = Context::cpu();
  for_each_hard([&](const Variant& variant) {
    Trial t = declared(cpu, DType::kF64, variant);
    if (t.gradients().empty()) return;
    t.run(Trial::Starts::kZero);
    std::vector<Tensor> found;
    for (const auto& [x, d_x] : t.gradients()) found.push_back(copy_of(t.slot(d_x).tensor));
    for (size_t i = 0; i < found.size(); ++i) {
      const Trial::Slot& slot = t.slot(t.gradients()[i].first);
      expect_slope(t, slot.tensor, found[i], slot.name);
    }
  });
}

// A sum is what it was plus what is found where it was 0; of a tensor that is written in part, the rest stays.
TEST_P(Cases, SumsAreAddedToAndTheRestIsLeftAlone) {
  Context cpu = Context::cpu();
  for_each_hard([&](const Variant& variant) {
    Trial t = declared(cpu, DType::kF64, variant);
    for (const Trial::Step& step : t.steps()) {
      t.run(step, Trial::Starts::kZero);
      std::vector<Tensor> from_zero;
      for (const Var& var : step.writes) from_zero.push_back(copy_of(t.slot(var).tensor));
      t.run(step);
      for (size_t w = 0; w < step.writes.size(); ++w) {
        const Trial::Slot& slot = t.slot(step.writes[w]);
        const int64_t count = slot.tensor.numel();
        if (slot.role == Role::kSum) {
          Tensor expected = copy_of(slot.start);
          for (int64_t i = 0; i < count; ++i) expected.data<double>()[i] += from_zero[w].data<double>()[i];
          expect_close(slot.tensor, expected, 1e-14, slot.name);
        }
        for (int64_t i = 0; i < count && slot.role == Role::kPart; ++i) {
          const double after = value_at(slot.tensor, i), zero = value_at(from_zero[w], i);
          ASSERT_TRUE(after == zero || (zero == 0 && after == value_at(slot.start, i)))
              << slot.name << ", element " << i;
        }
      }
    }
  });
}

TEST_P(Cases, Fp32IsCloseToFp64) {
  Context cpu = Context::cpu();
  for_each_hard([&](const Variant& variant) {
    Trial reference = Trial::reference_of(cpu, DType::kF32, Device::kCpu), t = Trial::of(cpu, DType::kF32);
    expect_agreement(variant, reference, t, [](const Trial::Slot& slot, int64_t) { return slot.close.cpu; });
  });
}

TEST_P(Cases, SameBitsForEveryThreadCount) {
  Context cpu = Context::cpu();
  for_each_hard([&](const Variant& variant) {
    Trial t = declared(cpu, DType::kF32, variant);
    expect_same_bits_for_every_thread_count([&] {
      t.run();
      std::vector<Tensor> copies;
      for (const Tensor& tensor : t.written()) copies.push_back(copy_of(tensor));
      return copies;
    });
  });
}

TEST_P(Cases, TakeTheScratchThatIsCounted) {
  Context cpu = Context::cpu();
  for_each_hard([&](const Variant& variant) {
    Trial t = declared(cpu, DType::kF32, variant);
    expect_counted_scratch(t, Context::cpu);
  });
}

// The table is whole: every header of the catalogue has a case, and its steps are in what is timed.
TEST(Cases, TimesEveryStepThatItKnows) {
  Sizes sizes;
  sizes.rows = 2, sizes.row_tokens = 64, sizes.hidden = 32, sizes.vocabulary = 97,
  sizes.experts = sizes.local_experts = 8;
  sizes.experts_per_token = 2, sizes.expert_width = sizes.shared_width = 8,
  sizes.mtp = sizes.muon = sizes.shared_rows = true;
  sizes.gdn = GdnDims{2, 4, 8, 8, 4}, sizes.attention = AttentionDims{4, 2, 16, 8, 1e4, 1e-6};
  for (const OperatorCase& c : operator_cases()) {
    const std::vector<std::string> timed = step_names(c.timed(sizes)), checked = step_names(c.checked(sizes));
    for (const std::string& step : step_names(c.hard())) {
      const bool helps = std::find(timed.begin(), timed.end(), step) == timed.end();
      EXPECT_TRUE(!helps) << c.name << ": " << step << " is never timed";
      EXPECT_NE(std::find(checked.begin(), checked.end(), step), checked.end()) << c.name << ": " << step;
    }
  }
}

}  // namespace
}  // namespace braid::cases
