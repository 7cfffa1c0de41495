#include "kernels/rms_norm.h"

#include "kernels/core/profile.h"
#include "kernels/on_device.h"

namespace braid {

namespace cpu {
decltype(braid::rms_norm_forward) rms_norm_forward;
decltype(braid::rms_norm_backward) rms_norm_backward;
decltype(braid::add_rms_norm_forward) add_rms_norm_forward;
decltype(braid::add_rms_norm_backward) add_rms_norm_backward;
}  // namespace cpu
namespace cuda {
decltype(braid::rms_norm_forward) rms_norm_forward;
decltype(braid::rms_norm_backward) rms_norm_backward;
decltype(braid::add_rms_norm_forward) add_rms_norm_forward;
decltype(braid::add_rms_norm_backward) add_rms_norm_backward;
}  // namespace cuda

void rms_norm_forward(Context& ctx, Tensor y, Tensor rstd, const Tensor& x, const Tensor& weight, double eps) {
  const OperatorScope scope(ctx, "rms_norm_forward");
  const int64_t N = x.dim(0), C = x.dim(1);
  check_shapes({{"y", y, {N, C}}, {"rstd", rstd, {N}}, {"x", x, {N, C}}, {"weight", weight, {C}}});
  check_dtype(x.dtype(), {{"y", y}});
  check_dtype(wide_dtype(x.dtype()), {{"rstd", rstd}, {"weight", weight}});
  if (N == 0 || ctx.counts_only()) return;
  on_device<cpu::rms_norm_forward, cuda::rms_norm_forward>(ctx, y, rstd, x, weight, eps);
}

void rms_norm_backward(Context& ctx, Tensor d_x, Tensor d_weight, const Tensor& d_y, const Tensor& x,
                       const Tensor& weight, const Tensor& rstd) {
  const OperatorScope scope(ctx, "rms_norm_backward");
  const int64_t N = x.dim(0), C = x.dim(1);
  check_shapes({{"d_x", d_x, {N, C}},
                {"d_weight", d_weight, {C}},
                {"d_y", d_y, {N, C}},
                {"x", x, {N, C}},
                {"weight", weight, {C}},
                {"rstd", rstd, {N}}});
  check_dtype(x.dtype(), {{"d_x", d_x}, {"d_y", d_y}});
  check_dtype(wide_dtype(x.dtype()), {{"d_weight", d_weight}, {"weight", weight}, {"rstd", rstd}});
  if (N == 0) return;
  on_device<cpu::rms_norm_backward, cuda::rms_norm_backward>(ctx, d_x, d_weight, d_y, x, weight, rstd);
}

void add_rms_norm_forward(Context& ctx, Tensor y, Tensor sum, Tensor rstd, const Tensor& x, const Tensor& delta,
                          const Tensor& weight, double eps) {
  const OperatorScope scope(ctx, "add_rms_norm_forward");
  const int64_t N = x.dim(0), C = x.dim(1);
  check_shapes({{"y", y, {N, C}},
                {"sum", sum, {N, C}},
                {"rstd", rstd, {N}},
                {"x", x, {N, C}},
                {"delta", delta, {N, C}},
                {"weight", weight, {C}}});
  check_dtype(x.dtype(), {{"y", y}, {"sum", sum}, {"delta", delta}});
  check_dtype(wide_dtype(x.dtype()), {{"rstd", rstd}, {"weight", weight}});
  if (N == 0 || ctx.counts_only()) return;
  on_device<cpu::add_rms_norm_forward, cuda::add_rms_norm_forward>(ctx, y, sum, rstd, x, delta, weight, eps);
}

void add_rms_norm_backward(Context& ctx, Tensor d_sum, Tensor d_weight, const Tensor& d_y, const Tensor& sum,
                           const Tensor& weight, const Tensor& rstd) {
  const OperatorScope scope(ctx, "add_rms_norm_backward");
  const int64_t N = sum.dim(0), C = sum.dim(1);
  check_shapes({{"d_sum", d_sum, {N, C}},
                {"d_weight", d_weight, {C}},
                {"d_y", d_y, {N, C}},
                {"sum", sum, {N, C}},
                {"weight", weight, {C}},
                {"rstd", rstd, {N}}});
  check_dtype(sum.dtype(), {{"d_sum", d_sum}, {"d_y", d_y}});
  check_dtype(wide_dtype(sum.dtype()), {{"d_weight", d_weight}, {"weight", weight}, {"rstd", rstd}});
  if (N == 0) return;
  on_device<cpu::add_rms_norm_backward, cuda::add_rms_norm_backward>(ctx, d_sum, d_weight, d_y, sum, weight, rstd);
}

}  // namespace braid
