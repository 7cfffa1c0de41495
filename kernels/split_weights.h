#pragma once

#include "kernels/core/context.h"
#include "kernels/core/tensor.h"

namespace braid {

// Weights that are updated in more digits than a model computes with: a bf16 weight and 16 low bits are together the
// fp32 master, in four bytes instead of six (see kernels/core/split_float.h). Weights in fp32, or fp64 (CPU), are their
// own masters and have no low bits: `low` is not defined.
//   weight, master of one shape, master in wide_dtype of the weight;  low (that shape, 2) U8, two bytes each
// Errors: ShapeError, DTypeError, naming the tensor.

// weight, low = master. Without `low` a bf16 weight is all that is kept: what a model needs that is not trained.
void split_weights(Context& ctx, Tensor weight, Tensor low, const Tensor& master);
// master = weight, low
void join_weights(Context& ctx, Tensor master, const Tensor& weight, const Tensor& low);

inline Shape shape_of_low_bits(Shape weight) {
  weight.append(2);
  return weight;
}

// What operators that update weights check: low beside a bf16 weight, and none beside others.
void check_low_bits(const Tensor& weight, const Tensor& low);

}  // namespace braid
