#pragma once

#include "kernels/core/context.h"
#include "kernels/core/tensor.h"

namespace braid {

struct AdamWStep {
  double lr, beta1, beta2, eps;
  double weight_decay;    // decoupled
  double gradient_scale;  // multiplies every gradient first (clipping)
  int64_t step;           // 1 for the first update
};

// One decoupled AdamW update of a flat shard:
//   g = gradient_scale * gradient;   m <- beta1 m + (1 - beta1) g;   v <- beta2 v + (1 - beta2) g^2
//   weight <- weight - lr (m / (1 - beta1^step) / (sqrt(v / (1 - beta2^step)) + eps) + weight_decay * weight)
//   weight, m, v, gradient (n) of one dtype, fp32 or fp64
// Source: arXiv 1711.05101; torch.optim.AdamW.   Errors: ShapeError, DTypeError, naming the tensor.
void adamw_update(Context& ctx, Tensor weight, Tensor m, Tensor v, const Tensor& gradient, const AdamWStep& step);

}  // namespace braid
