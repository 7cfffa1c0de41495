#pragma once

#include "kernels/core/context.h"
#include "kernels/core/tensor.h"
#include "kernels/matmul.h"

namespace braid {

// A permutation of (token, slot) pairs to rows grouped by expert. Slot index: n * K + k.
struct ExpertOrder {
  Tensor row_of_slot;      // (N, K) I32   row of the pair, -1 if it was dropped
  Tensor slot_of_row;      // (N * K) I32  the first sum(rows_per_expert) entries are used, the others -1
  Tensor rows_per_expert;  // (E) I64
};

// Stable counting sort: rows ascend by expert, then by token, then by slot. Pairs with expert_id -1 are dropped.
//   expert_id (N, K) I32, -1 <= id < E; on the GPU E <= 4096
void expert_order(Context& ctx, ExpertOrder order, const Tensor& expert_id);

// rows[r] = x[token of row r] for the first R rows; a row per pair.    rows (R, C), x (N, C)
// On the CPU R is at most sum(rows_per_expert). On the GPU, where the host does not know it, R may be any bound: rows
// that no pair has are not written.
void gather_rows(Context& ctx, Tensor rows, const Tensor& x, const ExpertOrder& order);

// y[n] [+]= sum over slots k = 0, 1, ... of rows[row_of_slot[n, k]]; dropped pairs add nothing.    y (N, C)
// On the GPU neither do rows that `rows` does not have. What y holds is added to the sum. rows may also be of y's wide
// dtype.
void combine_rows(Context& ctx, Tensor y, const Tensor& rows, const ExpertOrder& order,
                  Accumulate accumulate = Accumulate::kNo);

// The same where rows come in parts, one call for each: what sums (N, C), of the wide dtype, holds comes first in its
// sum. Where slots ascend as their rows do, the parts of an order from sums of 0 on make the sums of combine_rows.
void add_rows(Context& ctx, Tensor sums, const Tensor& rows, const ExpertOrder& order);

// Of an order the num_rows rows from first_row on, as an order of the same tokens that drops all other pairs.
void window_of_order(Context& ctx, ExpertOrder window, const ExpertOrder& order, int64_t first_row, int64_t num_rows);

// Where a token goes: once to every rank that holds one of its experts, in the order of the ranks.
//   place[n, i] = rank * rank_stride + n * token_stride    of the i-th such rank, -1 behind the last
//   place (N, S) I32 with S = min(K, ranks); expert_id (N, K) I32, -1 = not routed; expert e is on rank
//   e / experts_per_rank
// (1, 0) gives the ranks themselves, which expert_order sorts; (M, 1) place n of M on every rank.
void token_places(Context& ctx, Tensor place, const Tensor& expert_id, int64_t experts_per_rank, int64_t rank_stride,
                  int64_t token_stride);

// Ids of the `count` experts from `first` on become 0, 1, ..., all others -1.    ids (U, K) I32
void local_expert_ids(Context& ctx, Tensor ids, int64_t first, int64_t count);

// For buffers that hold max_rows rows, where the host does not know how many there are: `needed` (1) I64 becomes the
// sum of rows_per_expert (E) I64 if that is larger, and rows_per_expert is cut, from its end, to a sum of max_rows.
void limit_rows(Context& ctx, Tensor rows_per_expert, Tensor needed, int64_t max_rows);

// gather_rows and combine_rows are transposes of each other, so each is the other's backward. Rows are fp32, bf16 (GPU)
// or fp64 (CPU); sums are fp32 or wider.
// Errors: ShapeError, DTypeError, naming the tensor.

}  // namespace braid
