#pragma once

#include "kernels/core/context.h"
#include "kernels/core/implementation.h"
#include "kernels/core/tensor.h"
#include "kernels/gdn_inputs.h"

namespace braid {

// RMS norm of each value head, times the SiLU of its gate; here the weight is a plain scale (not 1 + weight):
//   y = weight * o * rstd * silu(z),   rstd = 1 / sqrt(mean(o^2) + eps) over the head
//   y, o (N, Hv, Dv)  fp32, bf16 (GPU) or fp64 (CPU);  z is read from its columns of qkvz (N, qkvz_columns)
//   rstd (N, Hv), weight (Dv)  in the wide dtype
// Source: Qwen3NextRMSNormGated in transformers.   Errors: ShapeError, DTypeError, naming the tensor.
void gated_rms_norm_forward(Context& ctx, Tensor y, Tensor rstd, const Tensor& o, const Tensor& qkvz,
                            const Tensor& weight, double eps, const GdnDims& dims);

//   d_o and the z columns of d_qkvz are overwritten;  d_weight += (wide dtype), in an order that does not
//   depend on the threads
void gated_rms_norm_backward(Context& ctx, Tensor d_o, Tensor d_qkvz, Tensor d_weight, const Tensor& d_y,
                             const Tensor& o, const Tensor& rstd, const Tensor& qkvz, const Tensor& weight,
                             const GdnDims& dims);

Implementation gated_rms_norm_implementation(Context& ctx, DType activation, const GdnDims& dims);

}  // namespace braid
