#include "kernels/swiglu.h"

namespace braid {

namespace cpu {
void swiglu_forward(Context& ctx, Tensor h, const Tensor& a, const Tensor& b, const Tensor& gate);
void swiglu_backward(Context& ctx, Tensor d_a, Tensor d_b, Tensor d_gate, const Tensor& d_h, const Tensor& a,
                     const Tensor& b, const Tensor& gate);
}  // namespace cpu

void swiglu_forward(Context& ctx, Tensor h, const Tensor& a, const Tensor& b, const Tensor& gate) {
  const int64_t N = a.dim(0), F = a.dim(1);
  check_shapes({{"h", h, {N, F}}, {"a", a, {N, F}}, {"b", b, {N, F}}, {"gate", gate, {N, 1}}});
  check_dtype(a.dtype(), {{"h", h}, {"b", b}, {"gate", gate}});
  if (N == 0) return;
  cpu::swiglu_forward(ctx, h, a, b, gate);
}

void swiglu_backward(Context& ctx, Tensor d_a, Tensor d_b, Tensor d_gate, const Tensor& d_h, const Tensor& a,
                     const Tensor& b, const Tensor& gate) {
  const int64_t N = a.dim(0), F = a.dim(1);
  check_shapes({{"d_a", d_a, {N, F}},
                {"d_b", d_b, {N, F}},
                {"d_gate", d_gate, {N, 1}},
                {"d_h", d_h, {N, F}},
                {"a", a, {N, F}},
                {"b", b, {N, F}},
                {"gate", gate, {N, 1}}});
  check_dtype(a.dtype(), {{"d_a", d_a}, {"d_b", d_b}, {"d_gate", d_gate}, {"d_h", d_h}, {"b", b}, {"gate", gate}});
  if (N == 0) return;
  cpu::swiglu_backward(ctx, d_a, d_b, d_gate, d_h, a, b, gate);
}

}  // namespace braid
