#include "trainer/checkpoint/checkpoint_scan.h"

#include <limits>

#include "tests/testing.h"
#include "tests/trainer/checkpoint/checkpoint_testing.h"

namespace braid {
namespace {

using namespace braid::testing;

class CheckpointScanTest : public FolderTest {
 protected:
  CheckpointReader saved(const std::string& name, const std::vector<std::pair<std::string, Tensor>>& tensors) {
    Context ctx = Context::cpu();
    auto world = make_local_communicator();
    std::vector<CheckpointSlice> slices;
    for (const auto& [tensor_name, t] : tensors) slices.push_back({tensor_name, t.shape(), 0, t.numel(), t});
    return CheckpointReader(save_checkpoint(ctx, *world, path(name), {}, slices));
  }
};

// Larger than the blocks that are compared at a time.
constexpr int64_t kLarge = 300001;

TEST_F(CheckpointScanTest, EqualBitsAreNoDifference) {
  Tensor large = random_normal({kLarge}, DType::kF32, 1), nan = poisoned({4}, DType::kF64);
  const CheckpointReader a = saved("a", {{"large", large}, {"nan", nan}});
  const CheckpointReader b = saved("b", {{"nan", nan}, {"large", large}});
  EXPECT_TRUE(compare_checkpoints(a, b).empty());
}

TEST_F(CheckpointScanTest, DifferencesHaveTheirClosedForm) {
  Tensor x = zeros({kLarge}, DType::kF32), zero = zeros({3}, DType::kF64), counts = tensor_of<int64_t>({3, 4}, {2});
  for (int64_t i = 0; i < kLarge; ++i) x.data<float>()[i] = 2;
  Tensor y = copy_of(x), first = copy_of(x), minus_zero = copy_of(zero), nan = copy_of(zero), ones = copy_of(zero);
  first.data<float>()[0] = 3;
  y.data<float>()[0] = 2.5f;
  y.data<float>()[kLarge - 1] = 1.5f;
  minus_zero.data<double>()[1] = -0.0;
  nan.data<double>()[2] = std::numeric_limits<double>::quiet_NaN();
  ones.data<double>()[0] = 1;
  const CheckpointReader a = saved("a", {{"x", x},
                                         {"sign", zero},
                                         {"nan", zero},
                                         {"from zero", zero},
                                         {"counts", counts},
                                         {"first block", x},
                                         {"same", x}});
  const CheckpointReader b = saved("b", {{"x", y},
                                         {"sign", minus_zero},
                                         {"nan", nan},
                                         {"from zero", ones},
                                         {"counts", tensor_of<int64_t>({3, 0}, {2})},
                                         {"first block", first},
                                         {"same", x}});
  const auto d = compare_checkpoints(a, b);
  ASSERT_EQ(d.size(), 6u);
  EXPECT_EQ(d[0].name, "counts");
  EXPECT_DOUBLE_EQ(d[0].relative_rms, 4.0 / 5.0);
  EXPECT_EQ(d[1].name, "first block");
  EXPECT_DOUBLE_EQ(d[1].relative_rms, std::sqrt(1 / (4.0 * kLarge)));
  EXPECT_EQ(d[2].name, "from zero");
  EXPECT_TRUE(std::isinf(d[2].relative_rms));
  EXPECT_EQ(d[3].name, "nan");
  EXPECT_TRUE(std::isinf(d[3].relative_rms));
  EXPECT_EQ(d[4].name, "sign");
  EXPECT_EQ(d[4].relative_rms, 0) << "equal numbers with other bits";
  EXPECT_EQ(d[5].name, "x");
  EXPECT_DOUBLE_EQ(d[5].relative_rms, std::sqrt(0.5 / (4.0 * kLarge)));
  expect_contains(d[5].what, "relative RMS difference 0.00");
}

TEST_F(CheckpointScanTest, TensorsOfOneSideAndOtherShapesAreNamed) {
  Tensor t = zeros({6}, DType::kF32);
  const CheckpointReader a = saved("a", {{"both", t}, {"left", t}, {"shape", t}, {"type", t}});
  const CheckpointReader b =
      saved("b", {{"both", t}, {"right", t}, {"shape", t.view({2, 3})}, {"type", zeros({6}, DType::kI32)}});
  const auto d = compare_checkpoints(a, b);
  ASSERT_EQ(d.size(), 4u);
  EXPECT_EQ(d[0].name + ": " + d[0].what, "left: only in the first");
  EXPECT_EQ(d[1].name + ": " + d[1].what, "right: only in the second");
  EXPECT_EQ(d[2].name + ": " + d[2].what, "shape: F32 (6) against F32 (2, 3)");
  EXPECT_EQ(d[3].name + ": " + d[3].what, "type: F32 (6) against I32 (6)");
  for (const TensorDifference& each : d) EXPECT_TRUE(std::isinf(each.relative_rms));
}

TEST_F(CheckpointScanTest, FindsWhatIsNotFinite) {
  Tensor counts = poisoned({3}, DType::kI64), large = zeros({kLarge}, DType::kF32), half = zeros({5}, DType::kBF16);
  check_finite(saved("fine", {{"counts", counts}, {"large", large}, {"half", half}, {"f64", zeros_f64({2})}}));

  large.data<float>()[kLarge - 2] = -std::numeric_limits<float>::infinity();
  const CheckpointReader infinite = saved("infinite", {{"large", large}});
  EXPECT_EQ(message_of<CheckpointError>([&] { check_finite(infinite); }),
            infinite.path() + ": tensor large element 299999 is -inf");

  static_cast<uint16_t*>(half.raw())[4] = 0x7fc0;
  const CheckpointReader nan = saved("nan", {{"half", half}});
  EXPECT_EQ(message_of<CheckpointError>([&] { check_finite(nan); }), nan.path() + ": tensor half element 4 is nan");
}

}  // namespace
}  // namespace braid
