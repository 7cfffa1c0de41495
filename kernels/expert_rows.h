#pragma once

#include "kernels/core/context.h"
#include "kernels/core/tensor.h"

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

// y[n] = sum over slots k = 0, 1, ... of rows[row_of_slot[n, k]]; dropped pairs add nothing.    y (N, C) overwritten
void combine_rows(Context& ctx, Tensor y, const Tensor& rows, const ExpertOrder& order);

// Moves blocks of consecutive rows: block b goes from row `from` of src to row `to` of dst.
// Used to regroup rows received per (rank, expert) into (expert, rank) order and back.    dst, src (R, C)
struct RowBlock {
  int64_t to, from, rows;
};
void move_row_blocks(Context& ctx, Tensor dst, const Tensor& src, const RowBlock* blocks, int64_t num_blocks);

// gather_rows and combine_rows are transposes of each other, so each is the other's backward. Rows are fp32, bf16 (GPU)
// or fp64 (CPU); sums are fp32 or wider.
// Errors: ShapeError, DTypeError, naming the tensor.

}  // namespace braid
