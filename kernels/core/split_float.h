#pragma once

#include <cstdint>

namespace braid {

// The 32 bits of a float as a bf16 and 16 more bits: the nearest bf16, ties away from zero, and as an integer what is
// left. To even would not do: a tie from above and one from below meet in the same even bf16, with 2^15 left of either.
// Together they are the float, bit for bit, but for the payload of a NaN.
struct SplitFloat {
  uint16_t high;  // the bf16
  int16_t low;
};

constexpr SplitFloat split_float(uint32_t bits) {
  const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;  // could round to an infinity, or around to zero
  if (is_nan) return {static_cast<uint16_t>(bits >> 16 | 0x0040), 0};
  return {static_cast<uint16_t>((bits + 0x8000) >> 16), static_cast<int16_t>(bits & 0xffff)};
}

constexpr uint32_t join_float(SplitFloat split) {
  return (uint32_t{split.high} << 16) + static_cast<uint32_t>(int32_t{split.low});
}

}  // namespace braid
