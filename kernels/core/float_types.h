#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "kernels/core/tensor.h"

namespace braid {

// The 16-bit floating-point formats in host memory. Conversion to float is exact, conversion to bf16 rounds to nearest,
// ties to even. The CPU stores and converts them; it does not compute in them.
struct BFloat16 {  // the upper half of a float
  uint16_t bits = 0;
  BFloat16() = default;
  explicit BFloat16(float value) {
    const uint32_t wide = std::bit_cast<uint32_t>(value);
    const bool is_nan = (wide & 0x7fffffff) > 0x7f800000;
    const uint32_t rounded = wide + 0x7fff + (wide >> 16 & 1);
    bits = static_cast<uint16_t>((is_nan ? wide | 0x00400000 : rounded) >> 16);  // a NaN stays one
  }
  explicit operator float() const { return std::bit_cast<float>(uint32_t{bits} << 16); }
};

struct Float16 {  // IEEE binary16
  uint16_t bits = 0;
  explicit operator float() const {
    const uint32_t sign = uint32_t{bits & 0x8000u} << 16, exponent = bits >> 10 & 0x1f, fraction = bits & 0x3ff;
    if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000 | fraction << 13);
    if (exponent == 0) {  // zero or subnormal
      const float magnitude = std::ldexp(static_cast<float>(fraction), -24);
      return sign ? -magnitude : magnitude;
    }
    return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
  }
};

// out = in, element by element, both in host memory: from any floating-point dtype to F64, F32 or BF16. To BF16 from
// F64 it goes by way of F32.   Errors: ShapeError, DTypeError.
void convert(Tensor out, const Tensor& in);

// Element i of a tensor in host memory, of any dtype.
inline double number_at(const Tensor& t, int64_t i) {
  switch (t.dtype()) {
    case DType::kF64: return t.data<double>()[i];
    case DType::kF32: return t.data<float>()[i];
    case DType::kI64: return static_cast<double>(t.data<int64_t>()[i]);
    case DType::kI32: return t.data<int32_t>()[i];
    case DType::kU8: return t.data<uint8_t>()[i];
    case DType::kBF16: return static_cast<float>(t.data<BFloat16>()[i]);
    case DType::kF16: return static_cast<float>(t.data<Float16>()[i]);
  }
  return 0;
}

}  // namespace braid
