#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

namespace braid::cpu {

// exp(x). In fp32 without branches or calls, so that loops vectorise, within about 1 ulp of the exact value;
// underflows gradually to 0, overflows to infinity, keeps NaN. In fp64 the library's.
template <class T>
inline T fast_exp(T x) {
  if constexpr (std::is_same_v<T, double>) {
    return std::exp(x);
  } else {
    static_assert(std::is_same_v<T, float>);
    // exp(x) = 2^n exp(r),  |r| <= log(2) / 2. Beyond the clamp the result is 0 or infinity anyway.
    x = x < -104.0f ? -104.0f : x;
    x = x > 89.0f ? 89.0f : x;
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: after the addition n stands in the low bits of the mantissa
    const float shifted = x * 1.44269504f + kRound;
    const float n = shifted - kRound;
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // log(2) in two parts; the first product is exact
    // Minimax polynomial of exp on that interval (Cephes expf).
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    // 2^n in two factors, because n reaches from below the smallest exponent to above the largest.
    const int32_t exponent = std::bit_cast<int32_t>(shifted) - std::bit_cast<int32_t>(kRound);
    const int32_t half = exponent >> 1;
    const float low = std::bit_cast<float>((half + 127) << 23);
    const float high = std::bit_cast<float>((exponent - half + 127) << 23);
    return p * low * high;
  }
}

template <class T>
inline T sigmoid(T x) {
  return T(1) / (T(1) + fast_exp(-x));
}

template <class T>
inline T silu(T x) {
  return x * sigmoid(x);
}

}  // namespace braid::cpu
