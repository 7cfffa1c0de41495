#pragma once

#include "kernels/core/context.h"
#include "kernels/core/segments.h"
#include "kernels/core/tensor.h"

namespace braid {

struct RouterOutputs {
  Tensor expert_id;  // (N, K) I32   ascending; -1 where a token is not valid
  Tensor gate;       // (N, K)       weight of each chosen expert; 0 where a token is not valid
  Tensor prob;       // (N, E)       softmax over all experts
  Tensor lse;        // (N)          log-sum-exp of the logits
  Tensor counts;     // (B, E) I64   valid (token, slot) pairs sent to each expert, per row of the batch
  Tensor prob_sum;   // (B, E) F64   sum of prob over the valid tokens of each row, in token order
  Tensor z_sum;      // (B)    F64   sum of lse^2 over the valid tokens of each row
};

// What the chosen probabilities are divided by.
enum class GateNorm { kNone, kTopK };  // nothing; their own sum (norm_topk_prob)

// Token-choice routing from logits (N, E): softmax over all experts, the K most probable (ties to the lower id), gates
// renormalised. A token's slots ascend by expert, as its rows do where they are grouped by expert.
// logits, gate, prob, lse: one dtype, fp32 or fp64 (CPU). On the GPU E <= 4096 and K <= 32.
// Source: Qwen3NextTopKRouter in transformers.   Errors: ShapeError, DTypeError, naming the tensor.
void router_forward(Context& ctx, RouterOutputs out, const Tensor& logits, const Segments& segments, GateNorm norm);

// out (1) F64 = sum over the valid tokens of the entropy of their probabilities, - sum_e p_e ln p_e = lse - sum_e p_e
// logit_e
//   logits, router: what router_forward read and wrote.   Errors: as there.
void router_entropy(Context& ctx, Tensor out, const Tensor& logits, const RouterOutputs& router,
                    const Segments& segments);

//   d_logits (N, E) fp32, bf16 (GPU) or fp64 (CPU), d_gate and `out` in its wide dtype.
//   d_logits overwritten, 0 where a token is not valid: the sum of
//     through the gates        d_gate (N, K); the selection itself has no gradient
//     balance loss             d_prob (B, E) F64: gradient of the loss by prob[n, e], the same for all tokens of a row
//     router z-loss            z_weight * d(lse^2)/d(logits)
void router_backward(Context& ctx, Tensor d_logits, const Tensor& d_gate, const Tensor& d_prob, double z_weight,
                     const RouterOutputs& out, const Segments& segments, GateNorm norm);

}  // namespace braid
