#pragma once

#include "kernels/core/context.h"
#include "kernels/core/tensor.h"

namespace braid {

// Of a flat shard of n elements.
struct AdamWState {
  Tensor weight;    // (n)  fp32, fp64 (CPU), or bf16 beside `low`
  Tensor m, v;      // (n)  in the dtype of the master; on the GPU also bf16; or U8, codes beside their scales
  Tensor low = {};  // (n, 2)  U8: the rest of the masters of bf16 weights; see split_weights.h
  Tensor m_scale = {}, v_scale = {};  // (ceil(n / 128))  of codes, in the dtype of the master; see core/moment_codes.h
};

struct AdamWStep {
  double lr, beta1, beta2, eps;
  double weight_decay;    // decoupled
  double gradient_scale;  // multiplies every gradient first (clipping)
  int64_t step;           // 1 for the first update
  // Of which tensor these are elements [first, first + n): decides the random numbers by which a narrow v is rounded.
  uint64_t stream = 0;
  int64_t first = 0;
};

// One decoupled AdamW update:
//   g = gradient_scale * gradient;   m <- beta1 m + (1 - beta1) g;   v <- beta2 v + (1 - beta2) g^2
//   weight <- weight - lr (m / (1 - beta1^step) / (sqrt(v / (1 - beta2^step)) + eps) + weight_decay * weight)
// of the masters that weight and low hold;   gradient (n) in their dtype, or bf16 beside bf16 weights (GPU)
// A narrow m is rounded to nearest; a narrow v up or down at random, in the mean to what it was: its steps become
// smaller than half its spacing with beta2 near 1, and to nearest it would stop following. The random number is a pure
// function of stream, element and step. Moments in U8 are coded in blocks of 128 elements, the first of which begins at
// element 0; step.first is then a multiple of 128. On the GPU their tensors, weights and gradient begin at 16 bytes.
// Source: arXiv 1711.05101; torch.optim.AdamW.   Errors: ShapeError, DTypeError, naming the tensor.
void adamw_update(Context& ctx, AdamWState state, const Tensor& gradient, const AdamWStep& step);

}  // namespace braid
