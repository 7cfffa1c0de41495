#pragma once

#include "kernels/core/context.h"
#include "kernels/core/implementation.h"
#include "kernels/core/tensor.h"

namespace braid {

enum class Transpose { kNo, kYes };
enum class Accumulate { kNo, kYes };  // overwrite the output, or add to it

// Dense product
//   c (M, N) [+]= op(a) op(b),   op(a) (M, K), op(b) (K, N)
//   a, b of one dtype, c of that or of its wide dtype (fp32 out of bf16); sums in fp32 or wider.
// Same bits for every thread count.   Errors: ShapeError, DTypeError, naming the tensor.
void matmul(Context& ctx, Tensor c, const Tensor& a, Transpose transpose_a, const Tensor& b, Transpose transpose_b,
            Accumulate accumulate = Accumulate::kNo);

// Linear layer with the weight stored [out, in], as in Hugging Face files:  y (N, O) [+]= x (N, I) weight (O, I)^T
void linear_forward(Context& ctx, Tensor y, const Tensor& x, const Tensor& weight,
                    Accumulate accumulate = Accumulate::kNo);
//   d_x (N, I) [+]= d_y weight
void linear_backward_input(Context& ctx, Tensor d_x, const Tensor& d_y, const Tensor& weight,
                           Accumulate accumulate = Accumulate::kNo);
//   d_weight (O, I) += d_y^T x
void linear_backward_weight(Context& ctx, Tensor d_weight, const Tensor& d_y, const Tensor& x);

// Of products whose matrices have rows of so many elements.
Implementation matmul_implementation(const Context& ctx, DType dtype, int64_t width);

}  // namespace braid
