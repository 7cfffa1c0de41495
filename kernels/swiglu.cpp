#include "kernels/swiglu.h"

#include "kernels/core/profile.h"
#include "kernels/on_device.h"

namespace braid {

namespace cpu {
decltype(braid::swiglu_forward) swiglu_forward;
decltype(braid::swiglu_backward) swiglu_backward;
}  // namespace cpu
namespace cuda {
decltype(braid::swiglu_forward) swiglu_forward;
decltype(braid::swiglu_backward) swiglu_backward;
}  // namespace cuda

void swiglu_forward(Context& ctx, Tensor h, const Tensor& a, const Tensor& b, const Tensor& gate) {
  const OperatorScope scope(ctx, "swiglu_forward");
  const int64_t N = a.dim(0), F = a.dim(1);
  check_shapes({{"h", h, {N, F}}, {"a", a, {N, F}}, {"b", b, {N, F}}, {"gate", gate, {N, 1}}});
  check_dtype(a.dtype(), {{"h", h}, {"b", b}});
  check_dtype(wide_dtype(a.dtype()), {{"gate", gate}});
  if (N == 0 || ctx.counts_only()) return;
  on_device<cpu::swiglu_forward, cuda::swiglu_forward>(ctx, h, a, b, gate);
}

void swiglu_backward(Context& ctx, Tensor d_a, Tensor d_b, Tensor d_gate, const Tensor& d_h, const Tensor& a,
                     const Tensor& b, const Tensor& gate) {
  const OperatorScope scope(ctx, "swiglu_backward");
  const int64_t N = a.dim(0), F = a.dim(1);
  check_shapes({{"d_a", d_a, {N, F}},
                {"d_b", d_b, {N, F}},
                {"d_gate", d_gate, {N, 1}},
                {"d_h", d_h, {N, F}},
                {"a", a, {N, F}},
                {"b", b, {N, F}},
                {"gate", gate, {N, 1}}});
  check_dtype(a.dtype(), {{"d_a", d_a}, {"d_b", d_b}, {"d_gate", d_gate}, {"d_h", d_h}, {"b", b}});
  check_dtype(wide_dtype(a.dtype()), {{"gate", gate}});
  if (N == 0 || ctx.counts_only()) return;
  on_device<cpu::swiglu_backward, cuda::swiglu_backward>(ctx, d_a, d_b, d_gate, d_h, a, b, gate);
}

}  // namespace braid
