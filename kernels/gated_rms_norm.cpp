#include "kernels/gated_rms_norm.h"

#include "kernels/build_config.h"
#include "kernels/core/profile.h"
#include "kernels/on_device.h"

namespace braid {

namespace cpu {
decltype(braid::gated_rms_norm_forward) gated_rms_norm_forward;
decltype(braid::gated_rms_norm_backward) gated_rms_norm_backward;
}  // namespace cpu
namespace cuda {
decltype(braid::gated_rms_norm_forward) gated_rms_norm_forward;
decltype(braid::gated_rms_norm_backward) gated_rms_norm_backward;
decltype(braid::gated_rms_norm_implementation) gated_rms_norm_implementation;
}  // namespace cuda

void gated_rms_norm_forward(Context& ctx, Tensor y, Tensor rstd, const Tensor& o, const Tensor& qkvz,
                            const Tensor& weight, double eps, const GdnDims& dims) {
  const OperatorScope scope(ctx, "gated_rms_norm_forward");
  const int64_t N = o.dim(0), Hv = dims.value_heads, Dv = dims.value_dim;
  check_shapes({{"y", y, {N, Hv, Dv}},
                {"rstd", rstd, {N, Hv}},
                {"o", o, {N, Hv, Dv}},
                {"qkvz", qkvz, {N, dims.qkvz_columns()}},
                {"weight", weight, {Dv}}});
  check_dtype(o.dtype(), {{"y", y}, {"qkvz", qkvz}});
  check_dtype(wide_dtype(o.dtype()), {{"rstd", rstd}, {"weight", weight}});
  if (N == 0 || ctx.counts_only()) return;
  on_device<cpu::gated_rms_norm_forward, cuda::gated_rms_norm_forward>(ctx, y, rstd, o, qkvz, weight, eps, dims);
}

void gated_rms_norm_backward(Context& ctx, Tensor d_o, Tensor d_qkvz, Tensor d_weight, const Tensor& d_y,
                             const Tensor& o, const Tensor& rstd, const Tensor& qkvz, const Tensor& weight,
                             const GdnDims& dims) {
  const OperatorScope scope(ctx, "gated_rms_norm_backward");
  const int64_t N = o.dim(0), Hv = dims.value_heads, Dv = dims.value_dim;
  check_shapes({{"d_o", d_o, {N, Hv, Dv}},
                {"d_qkvz", d_qkvz, {N, dims.qkvz_columns()}},
                {"d_weight", d_weight, {Dv}},
                {"d_y", d_y, {N, Hv, Dv}},
                {"o", o, {N, Hv, Dv}},
                {"rstd", rstd, {N, Hv}},
                {"qkvz", qkvz, {N, dims.qkvz_columns()}},
                {"weight", weight, {Dv}}});
  check_dtype(o.dtype(), {{"d_o", d_o}, {"d_qkvz", d_qkvz}, {"d_y", d_y}, {"qkvz", qkvz}});
  check_dtype(wide_dtype(o.dtype()), {{"d_weight", d_weight}, {"rstd", rstd}, {"weight", weight}});
  if (N == 0) return;
  on_device<cpu::gated_rms_norm_backward, cuda::gated_rms_norm_backward>(ctx, d_o, d_qkvz, d_weight, d_y, o, rstd, qkvz,
                                                                         weight, dims);
}

Implementation gated_rms_norm_implementation(Context& ctx, DType activation, const GdnDims& dims) {
  if constexpr (kWithCuda) {
    if (ctx.on_cuda()) return cuda::gated_rms_norm_implementation(ctx, activation, dims);
  }
  return {"CPU", ""};
}

}  // namespace braid
