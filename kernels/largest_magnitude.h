#pragma once

#include "kernels/core/context.h"
#include "kernels/core/tensor.h"

namespace braid {

// out (1) F64 = largest |x|; NaN if any x is NaN, 0 for an x without elements.
//   x of any shape, fp32, bf16 (GPU) or fp64 (CPU).   Errors: ShapeError, DTypeError, naming the tensor.
void largest_magnitude(Context& ctx, Tensor out, const Tensor& x);

}  // namespace braid
