#include "kernels/expert_rows.h"

#include "kernels/core/profile.h"
#include "kernels/on_device.h"

namespace braid {

namespace cpu {
decltype(braid::expert_order) expert_order;
decltype(braid::gather_rows) gather_rows;
decltype(braid::combine_rows) combine_rows;
decltype(braid::add_rows) add_rows;
decltype(braid::window_of_order) window_of_order;
decltype(braid::token_places) token_places;
decltype(braid::local_expert_ids) local_expert_ids;
decltype(braid::limit_rows) limit_rows;
}  // namespace cpu
namespace cuda {
decltype(braid::expert_order) expert_order;
decltype(braid::gather_rows) gather_rows;
decltype(braid::combine_rows) combine_rows;
decltype(braid::add_rows) add_rows;
decltype(braid::window_of_order) window_of_order;
decltype(braid::token_places) token_places;
decltype(braid::local_expert_ids) local_expert_ids;
decltype(braid::limit_rows) limit_rows;
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
  on_device<cpu::expert_order, cuda::expert_order>(ctx, order, expert_id);
}

void gather_rows(Context& ctx, Tensor rows, const Tensor& x, const ExpertOrder& order) {
  const OperatorScope scope(ctx, "gather_rows");
  const int64_t R = rows.dim(0), N = x.dim(0), C = x.dim(1);
  check_shapes({{"rows", rows, {R, C}}, {"x", x, {N, C}}});
  check_dtype(x.dtype(), {{"rows", rows}});
  check_order(order, N);
  if (R == 0 || ctx.counts_only()) return;
  on_device<cpu::gather_rows, cuda::gather_rows>(ctx, rows, x, order);
}

void combine_rows(Context& ctx, Tensor y, const Tensor& rows, const ExpertOrder& order, Accumulate accumulate) {
  const OperatorScope scope(ctx, "combine_rows");
  const int64_t R = rows.dim(0), N = y.dim(0), C = y.dim(1);
  check_shapes({{"y", y, {N, C}}, {"rows", rows, {R, C}}});
  if (rows.dtype() != wide_dtype(y.dtype())) check_dtype(y.dtype(), {{"rows", rows}});
  check_order(order, N);
  if (N == 0) return;
  on_device<cpu::combine_rows, cuda::combine_rows>(ctx, y, rows, order, accumulate);
}

void add_rows(Context& ctx, Tensor sums, const Tensor& rows, const ExpertOrder& order) {
  const OperatorScope scope(ctx, "add_rows");
  const int64_t R = rows.dim(0), N = sums.dim(0), C = sums.dim(1);
  check_shapes({{"sums", sums, {N, C}}, {"rows", rows, {R, C}}});
  check_dtype(wide_dtype(rows.dtype()), {{"sums", sums}});
  check_order(order, N);
  if (N == 0 || R == 0 || ctx.counts_only()) return;
  on_device<cpu::add_rows, cuda::add_rows>(ctx, sums, rows, order);
}

void window_of_order(Context& ctx, ExpertOrder window, const ExpertOrder& order, int64_t first_row, int64_t num_rows) {
  const OperatorScope scope(ctx, "window_of_order");
  const int64_t N = order.row_of_slot.dim(0);
  check_order(order, N);
  check_order(window, N);
  check_shapes({{"window.row_of_slot", window.row_of_slot, order.row_of_slot.shape()},
                {"window.rows_per_expert", window.rows_per_expert, order.rows_per_expert.shape()}});
  if (ctx.counts_only()) return;
  on_device<cpu::window_of_order, cuda::window_of_order>(ctx, window, order, first_row, num_rows);
}

void token_places(Context& ctx, Tensor place, const Tensor& expert_id, int64_t experts_per_rank, int64_t rank_stride,
                  int64_t token_stride) {
  const OperatorScope scope(ctx, "token_places");
  const int64_t N = expert_id.dim(0);
  check_shapes({{"place", place, {N, place.dim(1)}}});
  check_dtype(DType::kI32, {{"place", place}, {"expert_id", expert_id}});
  if (place.numel() == 0 || ctx.counts_only()) return;
  on_device<cpu::token_places, cuda::token_places>(ctx, place, expert_id, experts_per_rank, rank_stride, token_stride);
}

void local_expert_ids(Context& ctx, Tensor ids, int64_t first, int64_t count) {
  const OperatorScope scope(ctx, "local_expert_ids");
  check_dtype(DType::kI32, {{"ids", ids}});
  if (ids.numel() == 0 || ctx.counts_only()) return;
  on_device<cpu::local_expert_ids, cuda::local_expert_ids>(ctx, ids, first, count);
}

void limit_rows(Context& ctx, Tensor rows_per_expert, Tensor needed, int64_t max_rows) {
  const OperatorScope scope(ctx, "limit_rows");
  check_shapes({{"rows_per_expert", rows_per_expert, {rows_per_expert.numel()}}, {"needed", needed, {1}}});
  check_dtype(DType::kI64, {{"rows_per_expert", rows_per_expert}, {"needed", needed}});
  if (ctx.counts_only()) return;
  on_device<cpu::limit_rows, cuda::limit_rows>(ctx, rows_per_expert, needed, max_rows);
}

}  // namespace braid
