#include "kernels/random.h"

#include "tests/messages.h"
#include "tests/testing.h"

namespace braid {
namespace {

using namespace braid::testing;

std::vector<double> values_of(const Tensor& t) { return {t.data<double>(), t.data<double>() + t.numel()}; }

Tensor normal(int64_t count, uint64_t seed, uint64_t stream_id, int64_t first = 0) {
  Context ctx = Context::cpu();
  Tensor x = poisoned({count}, DType::kF64);
  fill_normal(ctx, x, 0, 1, seed, stream_id, first);
  return x;
}

// The known-answer vectors of Random123 (kat_vectors, philox4x32 10).
TEST(Philox, MatchesTheKnownAnswers) {
  using Words = std::array<uint32_t, 4>;
  EXPECT_EQ(philox(0, 0, 0), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  const uint64_t ones = ~uint64_t{0};
  EXPECT_EQ(philox(ones, ones, ones), (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  // key a4093822 299f31d0, counter 243f6a88 85a308d3 13198a2e 03707344: the low word comes first
  EXPECT_EQ(philox(0x299f31d0a4093822, 0x0370734413198a2e, 0x85a308d3243f6a88),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(FillNormal, HasTheMomentsOfANormalDistribution) {
  Context ctx = Context::cpu();
  constexpr int64_t kCount = 200000;
  Tensor x = poisoned({kCount}, DType::kF64);
  fill_normal(ctx, x, 3, 0.5, 7, 1, 0);
  double moments[5] = {};
  int64_t beyond_2_sigma = 0;
  for (double value : values_of(x)) {
    const double z = (value - 3) / 0.5;
    for (int power = 1; power <= 4; ++power) moments[power] += std::pow(z, power) / kCount;
    beyond_2_sigma += std::abs(z) > 2;
  }
  // Five standard errors: 1, sqrt 2, sqrt 15, sqrt 96 over sqrt(count).
  const double error = 5 / std::sqrt(double{kCount});
  EXPECT_NEAR(moments[1], 0, error);
  EXPECT_NEAR(moments[2], 1, error * std::sqrt(2));
  EXPECT_NEAR(moments[3], 0, error * std::sqrt(15));
  EXPECT_NEAR(moments[4], 3, error * std::sqrt(96));
  EXPECT_NEAR(double(beyond_2_sigma) / kCount, 0.0455, error * std::sqrt(0.0455));
}

TEST(FillUniform, FillsItsInterval) {
  Context ctx = Context::cpu();
  constexpr int64_t kCount = 100000;
  Tensor x = poisoned({kCount}, DType::kF64);
  fill_uniform(ctx, x, -1, 3, 7, 1, 0);
  double mean = 0, variance = 0, low = 3, high = -1;
  for (double value : values_of(x)) {
    mean += value / kCount;
    variance += (value - 1) * (value - 1) / kCount;
    low = std::min(low, value);
    high = std::max(high, value);
  }
  EXPECT_GT(low, -1);
  EXPECT_LT(low, -1 + 4e-4);
  EXPECT_LT(high, 3);
  EXPECT_GT(high, 3 - 4e-4);
  EXPECT_NEAR(mean, 1, 5 * std::sqrt(16.0 / 12 / kCount));
  EXPECT_NEAR(variance, 16.0 / 12, 5 * 1.2 / std::sqrt(double{kCount}));
}

TEST(FillNormal, AShardEqualsThatPartOfTheWhole) {
  Tensor whole = normal(1000, 5, 9);
  expect_same_bits(normal(300, 5, 9, 600), whole.rows(600, 900));
  expect_same_bits(normal(1, 5, 9, 999), whole.rows(999, 1000));
}

TEST(FillNormal, StreamsAndSeedsAreUnrelated) {
  constexpr int64_t kCount = 20000;
  Tensor base = normal(kCount, 5, 9);
  for (const Tensor& other : {normal(kCount, 6, 9), normal(kCount, 5, 10), normal(kCount, 5, 9, 1)})
    EXPECT_NEAR(dot(base, other) / kCount, 0, 5 / std::sqrt(double{kCount}));
}

TEST(FillNormal, RoundsOnceToFloat) {
  Context ctx = Context::cpu();
  Tensor x = poisoned({500}, DType::kF32);
  fill_normal(ctx, x, 0, 1, 5, 9, 0);
  expect_same_bits(x, converted(normal(500, 5, 9), DType::kF32));
}

TEST(FillNormal, NamesTheTensorOfAWrongDtype) {
  Context ctx = Context::cpu();
  EXPECT_EQ(message_of<DTypeError>([&] { fill_normal(ctx, zeros({4}, DType::kI64), 0, 1, 0, 0, 0); }),
            "x: expected F32 or F64, got I64");
}

}  // namespace
}  // namespace braid
