#pragma once

#include "kernels/core/context.h"
#include "kernels/core/tensor.h"

namespace braid {

// Most tokens of a chunk on the GPU, whose logits are scratch.
inline constexpr int64_t kLmHeadMostTokens = 8192;

// LM head and cross entropy over chunks of tokens; the (N, V) logits never exist whole.
//   loss_sums (B) F64 overwritten: for each of B rows of N / B tokens, the sum over those with a target of
//                                  logsumexp(l) - l[target],   l = hidden weight^T
//   hidden (N, C), weight (V, C) of one dtype, fp32, bf16 (GPU) or fp64 (CPU);  targets (N) I64, -1 = no target
// Source: arXiv 2411.09009 for the idea.   Errors: ShapeError, DTypeError, naming the tensor.
void lm_head_loss_forward(Context& ctx, Tensor loss_sums, const Tensor& hidden, const Tensor& weight,
                          const Tensor& targets);

// The same, and in the same sweep the gradients of scale * (the sum of loss_sums):
//   d_hidden (N, C) overwritten;  d_weight (V, C) in the wide dtype +=
void lm_head_loss_forward_backward(Context& ctx, Tensor loss_sums, Tensor d_hidden, Tensor d_weight,
                                   const Tensor& hidden, const Tensor& weight, const Tensor& targets, double scale);

}  // namespace braid
