#pragma once

#include "kernels/core/context.h"
#include "kernels/core/tensor.h"
#include "kernels/router.h"

namespace braid {

// totals (E) I64 += sum over the rows of counts (B, E) I64
void add_counts(Context& ctx, Tensor totals, const Tensor& counts);

// Load-balancing loss of one layer and micro-batch, and its gradient by the router's probabilities:
//   f_e = counts_e / sum(counts), uniform where nothing was counted
//   d_prob[b, e] = loss_weight * w,   sums[0] += w * router.prob_sum[b, e],   w = E * f_e * per_token
//   sums[1] += per_token * router.z_sum[b]
//   counts (1, E) I64: one load for all rows, or (B, E): each row its own
//   d_prob (B, E) F64 overwritten, sums (2) F64
// Sums in the order of rows and experts.   Source: arXiv 2501.11873.   Errors: ShapeError, DTypeError.
void load_balance(Context& ctx, Tensor d_prob, Tensor sums, const Tensor& counts, const RouterOutputs& router,
                  double loss_weight, double per_token);

}  // namespace braid
