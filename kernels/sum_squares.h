#pragma once

#include "kernels/core/context.h"
#include "kernels/core/tensor.h"

namespace braid {

// out (1) F64 = sum of x^2, in fp64 over fixed blocks that are added in order: the same bits for every thread count.
//   x of any shape, fp32, bf16 (GPU) or fp64 (CPU).   Errors: ShapeError, DTypeError, naming the tensor.
void sum_squares(Context& ctx, Tensor out, const Tensor& x);

}  // namespace braid
