#pragma once

#include "kernels/core/context.h"
#include "kernels/core/tensor.h"

namespace braid {

// x = 0, all bytes. Any dtype.
void fill_zero(Context& ctx, Tensor x);

// to = from, the same dtype and number of elements, each on the CPU or on ctx's GPU. From the GPU to the CPU it waits
// until the data is there; from the CPU the source may be changed as soon as it returns.
// Errors: ShapeError, DTypeError.
void copy(Context& ctx, Tensor to, const Tensor& from);

// to += from, element by element, the same shape and floating-point dtype, on one device. Sums are fp32 for bf16 (GPU).
// Errors: ShapeError, DTypeError.
void add(Context& ctx, Tensor to, const Tensor& from);

// to = from, element by element, between floating-point dtypes (rounding to nearest even), on one device.
// Errors: ShapeError, DTypeError.
void convert(Context& ctx, Tensor to, const Tensor& from);

}  // namespace braid
