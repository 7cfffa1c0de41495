// Every operator on the GPU, in every variant of its case, held to the CPU.
#include <limits>

#include "tests/kernels/cases_testing.h"
#include "tests/kernels/cuda/cuda_testing.h"

namespace braid::cases {
namespace {

using namespace braid::testing;

struct Tried {
  const OperatorCase* c;
  DType activation;
};
std::vector<Tried> everything() {
  std::vector<Tried> all;
  for (const OperatorCase& c : operator_cases())
    for (DType activation : {DType::kF32, DType::kBF16}) all.push_back({&c, activation});
  return all;
}

class CasesCuda : public ::testing::TestWithParam<Tried> {
 protected:
  void SetUp() override {
    if (!gpu_context()) GTEST_SKIP() << "there is no GPU here";
  }
  static void expect_agreement_with_the_cpu() {
    const auto& [c, activation] = GetParam();
    Context cpu = Context::cpu();
    for (const Variant& variant : hard_variants(*c, std::numeric_limits<int64_t>::max())) {
      SCOPED_TRACE(concat(c->name, ": ", variant.label));
      Trial reference = Trial::reference_of(cpu, activation, Device::kCuda);
      Trial tried = Trial::of(*gpu_context(), activation);
      expect_agreement(variant, reference, tried, [](const Trial::Slot& slot, int64_t count) {
        Tolerance t = GetParam().activation == DType::kBF16 ? slot.close.bf16 : slot.close.f32;
        t.relative_rms *= 1 + 1 / std::sqrt(double(std::max<int64_t>(count, 1)));  // few elements make the mean
        return t;
      });
    }
  }
};
INSTANTIATE_TEST_SUITE_P(Operators, CasesCuda, ::testing::ValuesIn(everything()), [](const auto& info) {
  return concat(info.param.c->name, "_", name_of(info.param.activation));
});

TEST_P(CasesCuda, AgreesWithTheCpu) { expect_agreement_with_the_cpu(); }

TEST_P(CasesCuda, AgreesWithTheCpuInPortableKernels) {
  const PortableKernels portable(*gpu_context());
  expect_agreement_with_the_cpu();
}

TEST_P(CasesCuda, TakeTheScratchThatIsCounted) {
  for (const Variant& variant : hard_variants(*GetParam().c, std::numeric_limits<int64_t>::max())) {
    SCOPED_TRACE(concat(GetParam().c->name, ": ", variant.label));
    Trial t = Trial::of(*gpu_context(), GetParam().activation);
    variant.declare(t);
    expect_counted_scratch(t, [] { return Context::gpu(0); });
  }
}

}  // namespace
}  // namespace braid::cases
