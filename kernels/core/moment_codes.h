#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "kernels/core/philox.h"

namespace braid {

// AdamW's moments in a byte each: m, and the root of v, as a share of the largest of 128 consecutive numbers, whose
// fourth root is what is stored.
//   m = scale (c / 127)^4, the sign with c;   v = (scale (c / 255)^4)^2;   scale: the largest |m|, root of v of the
//   block
// Numbers of one block differ by orders of magnitude, and an update is m over the root of v, so it is relative errors
// that count: steps are 3 % of the largest number, 10 % of one that is 100 times smaller; of the root of v half that.
// A fourth power takes no tables: its root is two square roots.
// In the place of the tables of Dettmers et al., "8-bit optimizers via block-wise quantization", arXiv 2110.02861.
struct MomentCodes {
  static constexpr int64_t kBlock = 128;  // as parameters are aligned in their buffers: no shard cuts a block

  // What a step of code 1 is worth to the fourth power.
  template <class T>
  static constexpr T unit_of_m(T scale) {
    return scale / 260144641;  // 127^4
  }
  template <class T>
  static constexpr T unit_of_v(T scale) {
    return scale / T(4228250625);  // 255^4
  }
  template <class T>
  static constexpr T m_of(uint8_t code, T unit) {
    return m_of_number(static_cast<T>(static_cast<int8_t>(code)), unit);
  }
  template <class T>
  static constexpr T v_of(int code, T unit) {
    return v_of_number(static_cast<T>(code), unit);
  }
  // The same of codes that are numbers already.
  template <class T>
  static constexpr T m_of_number(T c, T unit) {
    const T square = c * c;
    return (c < 0 ? -unit : unit) * (square * square);
  }
  template <class T>
  static constexpr T v_of_number(T c, T unit) {
    const T square = c * c, root = unit * (square * square);
    return root * root;
  }

  // To nearest.   share: the fourth root of |m| / scale
  template <class T>
  static constexpr uint8_t code_of_m(T m, T share) {
    const int c = static_cast<int>(share * 127 + T(0.5));
    return static_cast<uint8_t>(m < 0 ? -c : c);
  }
  // One of the two codes next to v, in the mean v: with beta2 near 1 steps of v are smaller than half of those between
  // codes, and to nearest it would stop following. What is not 0 stays so: m is divided by its root.
  //   share: the fourth root of root(v) / scale;   random: 16 bits
  template <class T>
  static constexpr uint8_t code_of_v(T v, T share, T unit, uint32_t random) {
    if (v == 0) return 0;
    const int low = std::clamp(static_cast<int>(share * 255), 0, 254);
    if (low == 0) return 1;
    const T below = v_of(low, unit), above = v_of(low + 1, unit);
    const T chance = (static_cast<T>(random) + T(0.5)) * T(0x1p-16);
    return static_cast<uint8_t>(low + (chance * (above - below) < v - below));
  }
};

// The random bits by which a second moment is rounded: 16 for each element of a tensor in each step, those of eight
// elements one number.
struct MomentNoise {
  uint64_t stream, step;
  constexpr std::array<uint32_t, 4> of_eight(int64_t first) const {
    return philox(stream, step, static_cast<uint64_t>(first / 8));
  }
  static constexpr uint32_t bits_of(const std::array<uint32_t, 4>& of_eight, int i) {
    return of_eight[static_cast<size_t>(i / 2)] >> i % 2 * 16 & 0xffff;
  }
};

}  // namespace braid
