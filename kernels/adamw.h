#pragma once

#include "kernels/core/context.h"
#include "kernels/core/tensor.h"

namespace braid {

// Of a flat shard of n elements.
struct AdamWState {
  Tensor weight;  // (n)
  Tensor m, v;  // (n)  in the dtype of the weight; on the GPU also bf16 (rounded to nearest: with beta2 near 1 a bf16 v
                //      stops following, because its steps are smaller than its spacing)
};

struct AdamWStep {
  double lr, beta1, beta2, eps;
  double weight_decay;    // decoupled
  double gradient_scale;  // multiplies every gradient first (clipping)
  int64_t step;           // 1 for the first update
};

// One decoupled AdamW update:
//   g = gradient_scale * gradient;   m <- beta1 m + (1 - beta1) g;   v <- beta2 v + (1 - beta2) g^2
//   weight <- weight - lr (m / (1 - beta1^step) / (sqrt(v / (1 - beta2^step)) + eps) + weight_decay * weight)
//   weight, gradient (n) of one dtype, fp32 or fp64 (CPU)
// The new weight is also written, rounded, to `rounded` (n), where that is defined: the bf16 weights that the model
// computes with, whose fp32 master `weight` is.
// Source: arXiv 1711.05101; torch.optim.AdamW.   Errors: ShapeError, DTypeError, naming the tensor.
void adamw_update(Context& ctx, AdamWState state, Tensor rounded, const Tensor& gradient, const AdamWStep& step);

}  // namespace braid
