#include "kernels/split_weights.h"

#include <bit>

#include "kernels/core/float_types.h"
#include "kernels/core/split_float.h"
#include "tests/messages.h"
#include "tests/testing.h"

namespace braid {
namespace {

using namespace braid::testing;

bool is_nan(uint32_t bits) { return (bits & 0x7fffffff) > 0x7f800000; }

TEST(SplitFloat, KeepsEveryBitPatternAndEveryNan) {
  int64_t wrong = 0;
#pragma omp parallel for reduction(+ : wrong)
  for (int64_t upper = 0; upper < 1 << 16; ++upper) {
    for (uint32_t lower = 0; lower < 1 << 16; ++lower) {
      const uint32_t bits = static_cast<uint32_t>(upper) << 16 | lower;
      const SplitFloat split = split_float(bits);
      const uint32_t joined = join_float(split);
      if (is_nan(bits)) wrong += !is_nan(joined) || !is_nan(uint32_t{split.high} << 16);
      else wrong += joined != bits;
    }
  }
  EXPECT_EQ(wrong, 0);
}

TEST(SplitFloat, IsTheNearestBf16WithTiesAwayFromZero) {
  auto high = [](float x) {
    return std::bit_cast<float>(uint32_t{split_float(std::bit_cast<uint32_t>(x)).high} << 16);
  };
  for (uint32_t upper : {0x0000u, 0x0001u, 0x3f80u, 0x3f81u, 0xbf80u, 0xbf81u, 0x7f7eu, 0x8000u, 0xc001u}) {
    const float down = std::bit_cast<float>(upper << 16), up = std::bit_cast<float>((upper + 1) << 16);
    EXPECT_EQ(high(std::bit_cast<float>(upper << 16 | 0x7fff)), down) << upper;
    EXPECT_EQ(high(std::bit_cast<float>(upper << 16 | 0x8000)), up) << upper;
    EXPECT_EQ(high(std::bit_cast<float>(upper << 16 | 0x8001)), up) << upper;
  }
  // But for ties it is what everything else rounds to.
  for (uint32_t i = 0; i < 1 << 20; ++i) {
    const uint32_t bits = i * 4093;
    if ((bits & 0xffff) == 0x8000 || is_nan(bits)) continue;
    ASSERT_EQ(split_float(bits).high, BFloat16(std::bit_cast<float>(bits)).bits) << bits;
  }
}

TEST(SplitWeights, GoToBf16AndBack) {
  Context ctx = Context::cpu();
  const Tensor master = random_normal({3, 5003}, DType::kF32, 1);
  Tensor weight = poisoned({3, 5003}, DType::kBF16), low = zeros({3, 5003, 2}, DType::kU8);
  Tensor alone = poisoned({3, 5003}, DType::kBF16), joined = poisoned({3, 5003}, DType::kF32);
  split_weights(ctx, weight, low, master);
  split_weights(ctx, alone, {}, master);
  join_weights(ctx, joined, weight, low);
  expect_same_bits(joined, master);
  expect_same_bits(alone, weight);
}

TEST(SplitWeights, ThatAreTheirOwnMastersAreCopied) {
  Context ctx = Context::cpu();
  const Tensor master = random_f64({100}, 1);
  Tensor weight = zeros_f64({100}), joined = zeros_f64({100});
  split_weights(ctx, weight, {}, master);
  join_weights(ctx, joined, weight, {});
  expect_same_bits(joined, master);
}

TEST(SplitWeights, NamesTheTensorOfAWrongShapeOrDtype) {
  Context ctx = Context::cpu();
  const Tensor master = zeros({4}, DType::kF32), weight = zeros({4}, DType::kBF16);
  EXPECT_EQ(message_of([&] {
              split_weights(ctx, weight, zeros({5, 2}, DType::kU8), master);
            }),
            "low: expected shape (4, 2), got (5, 2)");
  EXPECT_EQ(message_of([&] {
              split_weights(ctx, weight, zeros({4, 2}, DType::kI32), master);
            }),
            "low: expected dtype U8, got I32");
  EXPECT_EQ(message_of([&] { split_weights(ctx, zeros({4}, DType::kI32), {}, master); }),
            "weight: expected dtype BF16, got I32");
  EXPECT_EQ(message_of([&] { join_weights(ctx, master, weight, {}); }), "low: missing beside a weight in BF16");
  EXPECT_EQ(message_of([&] {
              join_weights(ctx, zeros_f64({4}), weight, zeros({4, 2}, DType::kU8));
            }),
            "master: expected dtype F32, got F64");
}

}  // namespace
}  // namespace braid
