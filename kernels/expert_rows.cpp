#include "kernels/expert_rows.h"

#include "kernels/build_config.h"
#include "kernels/core/profile.h"

namespace braid {

namespace cpu {
decltype(braid::expert_order) expert_order;
decltype(braid::gather_rows) gather_rows;
decltype(braid::combine_rows) combine_rows;
decltype(braid::move_row_blocks) move_row_blocks;
}  // namespace cpu
namespace cuda {
decltype(braid::expert_order) expert_order;
decltype(braid::gather_rows) gather_rows;
decltype(braid::combine_rows) combine_rows;
decltype(braid::move_row_blocks) move_row_blocks;
}  // namespace cuda

namespace {

void check_order(const ExpertOrder& order, int64_t N) {
  const int64_t K = order.row_of_slot.dim(1), E = order.rows_per_expert.dim(0);
  check_shapes({{"row_of_slot", order.row_of_slot, {N, K}},
                {"slot_of_row", order.slot_of_row, {N * K}},
                {"rows_per_expert", order.rows_per_expert, {E}}});
  check_dtype(DType::kI32, {{"row_of_slot", order.row_of_slot}, {"slot_of_row", order.slot_of_row}});
  check_dtype(DType::kI64, {{"rows_per_expert", order.rows_per_expert}});
}

}  // namespace

void expert_order(Context& ctx, ExpertOrder order, const Tensor& expert_id) {
  const OperatorScope scope(ctx, "expert_order");
  check_order(order, expert_id.dim(0));
  check_shapes({{"expert_id", expert_id, order.row_of_slot.shape()}});
  check_dtype(DType::kI32, {{"expert_id", expert_id}});
  // Also for N = 0: rows_per_expert is then all zero.
  if constexpr (kWithCuda) {
    if (ctx.on_cuda()) return cuda::expert_order(ctx, order, expert_id);
  }
  cpu::expert_order(ctx, order, expert_id);
}

void gather_rows(Context& ctx, Tensor rows, const Tensor& x, const ExpertOrder& order) {
  const OperatorScope scope(ctx, "gather_rows");
  const int64_t R = rows.dim(0), N = x.dim(0), C = x.dim(1);
  check_shapes({{"rows", rows, {R, C}}, {"x", x, {N, C}}});
  check_dtype(x.dtype(), {{"rows", rows}});
  check_order(order, N);
  if (R == 0) return;
  if constexpr (kWithCuda) {
    if (ctx.on_cuda()) return cuda::gather_rows(ctx, rows, x, order);
  }
  cpu::gather_rows(ctx, rows, x, order);
}

void combine_rows(Context& ctx, Tensor y, const Tensor& rows, const ExpertOrder& order) {
  const OperatorScope scope(ctx, "combine_rows");
  const int64_t R = rows.dim(0), N = y.dim(0), C = y.dim(1);
  check_shapes({{"y", y, {N, C}}, {"rows", rows, {R, C}}});
  check_dtype(y.dtype(), {{"rows", rows}});
  check_order(order, N);
  if (N == 0) return;
  if constexpr (kWithCuda) {
    if (ctx.on_cuda()) return cuda::combine_rows(ctx, y, rows, order);
  }
  cpu::combine_rows(ctx, y, rows, order);
}

void move_row_blocks(Context& ctx, Tensor dst, const Tensor& src, const RowBlock* blocks, int64_t num_blocks) {
  const OperatorScope scope(ctx, "move_row_blocks");
  const int64_t R = src.dim(0), C = src.dim(1);
  check_shapes({{"dst", dst, {R, C}}, {"src", src, {R, C}}});
  check_dtype(src.dtype(), {{"dst", dst}});
  for (int64_t b = 0; b < num_blocks; ++b) {
    const auto [to, from, rows] = blocks[b];
    check<ShapeError>(rows >= 0 && from >= 0 && to >= 0 && from + rows <= R && to + rows <= R, "blocks: block ", b,
                      " moves ", rows, " rows from ", from, " to ", to, ", outside ", R, " rows");
  }
  if (R == 0 || num_blocks == 0) return;
  if constexpr (kWithCuda) {
    if (ctx.on_cuda()) return cuda::move_row_blocks(ctx, dst, src, blocks, num_blocks);
  }
  cpu::move_row_blocks(ctx, dst, src, blocks, num_blocks);
}

}  // namespace braid
