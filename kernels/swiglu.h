#pragma once

#include "kernels/core/context.h"
#include "kernels/core/tensor.h"

namespace braid {

// SwiGLU with a gate per token in front of the down projection (the shared expert's sigmoid gate):
//   h = sigmoid(gate) * silu(a) * b
//   h, a, b (N, F)  fp32, bf16 (GPU) or fp64 (CPU);  gate (N, 1) logits in the wide dtype
// Source: shared expert of Qwen3NextSparseMoeBlock.   Errors: ShapeError, DTypeError, naming the tensor.
void swiglu_forward(Context& ctx, Tensor h, const Tensor& a, const Tensor& b, const Tensor& gate);

//   d_a, d_b, d_gate overwritten, in the dtype of a (d_gate too: it is a factor of products); d_a may be the same
//   memory as d_h
void swiglu_backward(Context& ctx, Tensor d_a, Tensor d_b, Tensor d_gate, const Tensor& d_h, const Tensor& a,
                     const Tensor& b, const Tensor& gate);

}  // namespace braid
