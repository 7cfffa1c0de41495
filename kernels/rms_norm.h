#pragma once

#include "kernels/core/context.h"
#include "kernels/core/tensor.h"

namespace braid {

// RMS norm over the last dimension, with the weight stored around zero:
//   y = x * rstd * (1 + weight),   rstd = 1 / sqrt(mean(x^2) + eps)
//   x, y (N, C)  fp32, bf16 (GPU) or fp64 (CPU);  weight (C), rstd (N)  in the wide dtype
// Source: Qwen3NextRMSNorm in transformers.   Errors: ShapeError, DTypeError, naming the tensor.
void rms_norm_forward(Context& ctx, Tensor y, Tensor rstd, const Tensor& x, const Tensor& weight, double eps);

//   d_x       = rstd * (g - x * rstd^2 * mean(g * x)),   g = d_y * (1 + weight)       (overwritten)
//   d_weight += sum over rows of d_y * x * rstd, in an order that does not depend on the thread count
//   d_x, d_y in the dtype of x, d_weight in the wide dtype
void rms_norm_backward(Context& ctx, Tensor d_x, Tensor d_weight, const Tensor& d_y, const Tensor& x,
                       const Tensor& weight, const Tensor& rstd);

// The same with the residual addition in front, in one pass over memory:
//   sum = x + delta;  y = rms_norm(sum)
//   sum may be the same memory as x.
void add_rms_norm_forward(Context& ctx, Tensor y, Tensor sum, Tensor rstd, const Tensor& x, const Tensor& delta,
                          const Tensor& weight, double eps);

//   d_sum += gradient through the norm; on entry it holds the gradient that arrives along the residual stream.
//   Afterwards it is the gradient of both x and delta.   d_weight += as above.
void add_rms_norm_backward(Context& ctx, Tensor d_sum, Tensor d_weight, const Tensor& d_y, const Tensor& sum,
                           const Tensor& weight, const Tensor& rstd);

}  // namespace braid
