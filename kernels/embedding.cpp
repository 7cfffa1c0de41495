#include "kernels/embedding.h"

#include "kernels/core/profile.h"
#include "kernels/on_device.h"

namespace braid {

namespace cpu {
decltype(braid::embedding_forward) embedding_forward;
decltype(braid::embedding_backward) embedding_backward;
}  // namespace cpu
namespace cuda {
decltype(braid::embedding_forward) embedding_forward;
decltype(braid::embedding_backward) embedding_backward;
}  // namespace cuda

void embedding_forward(Context& ctx, Tensor y, const Tensor& ids, const Tensor& table) {
  const OperatorScope scope(ctx, "embedding_forward");
  const int64_t N = y.dim(0), C = y.dim(1);
  check_shapes({{"y", y, {N, C}}, {"ids", ids, {N}}, {"table", table, {table.dim(0), C}}});
  check_dtype(y.dtype(), {{"table", table}});
  check_dtype(DType::kI64, {{"ids", ids}});
  if (N == 0 || ctx.counts_only()) return;
  on_device<cpu::embedding_forward, cuda::embedding_forward>(ctx, y, ids, table);
}

void embedding_backward(Context& ctx, Tensor d_table, const Tensor& d_y, const Tensor& ids) {
  const OperatorScope scope(ctx, "embedding_backward");
  const int64_t N = d_y.dim(0), C = d_y.dim(1);
  check_shapes({{"d_table", d_table, {d_table.dim(0), C}}, {"d_y", d_y, {N, C}}, {"ids", ids, {N}}});
  check_dtype(wide_dtype(d_y.dtype()), {{"d_table", d_table}});
  check_dtype(DType::kI64, {{"ids", ids}});
  if (N == 0) return;
  on_device<cpu::embedding_backward, cuda::embedding_backward>(ctx, d_table, d_y, ids);
}

}  // namespace braid
