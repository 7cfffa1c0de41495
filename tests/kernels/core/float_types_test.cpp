#include "kernels/core/float_types.h"

#include <limits>

#include "tests/testing.h"

namespace braid {
namespace {

using namespace braid::testing;

constexpr float kInf = std::numeric_limits<float>::infinity();

TEST(BFloat16, RoundsToNearestTiesToEven) {
  const float ulp = std::ldexp(1.0f, -7);  // of numbers in [1, 2)
  EXPECT_EQ(float(BFloat16(1.0f)), 1.0f);
  EXPECT_EQ(float(BFloat16(1 + 0.49f * ulp)), 1.0f);
  EXPECT_EQ(float(BFloat16(1 + 0.51f * ulp)), 1 + ulp);
  EXPECT_EQ(float(BFloat16(1 + 0.5f * ulp)), 1.0f) << "a tie goes to the even neighbour below";
  EXPECT_EQ(float(BFloat16(1 + 1.5f * ulp)), 1 + 2 * ulp) << "a tie goes to the even neighbour above";
  EXPECT_EQ(float(BFloat16(-1 - 0.51f * ulp)), -1 - ulp);
  EXPECT_EQ(float(BFloat16(3.4e38f)), kInf) << "beyond the largest bf16";
  EXPECT_EQ(float(BFloat16(-kInf)), -kInf);
  EXPECT_TRUE(std::isnan(float(BFloat16(std::bit_cast<float>(0x7f800001u))))) << "a NaN in the lower half only";
}

TEST(BFloat16, EveryBitPatternSurvivesTheWayThroughFloat) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    BFloat16 value;
    value.bits = static_cast<uint16_t>(bits);
    const float wide = float(value);
    if (std::isnan(wide)) {
      EXPECT_TRUE(std::isnan(float(BFloat16(wide))));
    } else {
      EXPECT_EQ(BFloat16(wide).bits, bits);
    }
  }
}

TEST(Float16, EveryBitPatternHasItsValue) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    Float16 value;
    value.bits = static_cast<uint16_t>(bits);
    const int exponent = bits >> 10 & 0x1f, fraction = bits & 0x3ff;
    const double magnitude = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
    const float got = float(value);
    EXPECT_EQ(std::signbit(got), bits >> 15 != 0);
    if (exponent < 31) {
      EXPECT_EQ(std::fabs(got), float(magnitude)) << bits;
    } else {
      EXPECT_EQ(std::isnan(got), fraction != 0) << bits;
      EXPECT_EQ(std::isinf(got), fraction == 0) << bits;
    }
  }
}

TEST(Convert, GoesBetweenAllFloatingPointDtypes) {
  const Tensor source = tensor_of<double>({1, -2.5, 1.0 / 3, 0}, {4});
  for (DType dtype : {DType::kF64, DType::kF32, DType::kBF16}) {
    Tensor there = allocate({4}, dtype), back = allocate({4}, DType::kF64);
    convert(there, source);
    convert(back, there);
    for (int64_t i = 0; i < 4; ++i) {
      const double x = source.data<double>()[i];
      const double expected = dtype == DType::kF64 ? x : dtype == DType::kF32 ? float(x) : float(BFloat16(float(x)));
      EXPECT_EQ(back.data<double>()[i], expected) << name_of(dtype);
    }
  }
}

TEST(Convert, RefusesIntegersAndOtherSizes) {
  EXPECT_THROW(convert(zeros({2}, DType::kF32), zeros({2}, DType::kI64)), DTypeError);
  EXPECT_THROW(convert(zeros({2}, DType::kI64), zeros({2}, DType::kF32)), DTypeError);
  EXPECT_THROW(convert(zeros({2}, DType::kF16), zeros({2}, DType::kF32)), DTypeError);
  EXPECT_THROW(convert(zeros({2}, DType::kF32), zeros({3}, DType::kF64)), ShapeError);
}

}  // namespace
}  // namespace braid
