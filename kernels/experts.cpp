#include "kernels/experts.h"

#include "kernels/build_config.h"
#include "kernels/core/copy.h"
#include "kernels/core/profile.h"
#include "kernels/on_device.h"

namespace braid {

namespace cpu {
decltype(braid::experts_forward) experts_forward;
decltype(braid::experts_backward_input) experts_backward_input;
decltype(braid::experts_backward_weight) experts_backward_weight;
}  // namespace cpu
namespace cuda {
decltype(braid::experts_forward) experts_forward;
decltype(braid::experts_backward_input) experts_backward_input;
decltype(braid::experts_backward_weight) experts_backward_weight;
decltype(braid::experts_implementation) experts_implementation;
}  // namespace cuda

namespace {

void check_inputs(const Tensor& x, const Tensor& row_gate, const Tensor& rows_per_expert,
                  const ExpertWeights& weights) {
  const int64_t R = x.dim(0), C = x.dim(1), El = weights.down.dim(0), F = weights.down.dim(2);
  check_shapes({{"x", x, {R, C}},
                {"row_gate", row_gate, {R}},
                {"rows_per_expert", rows_per_expert, {El}},
                {"weights.gate_up", weights.gate_up, {El, 2 * F, C}},
                {"weights.down", weights.down, {El, C, F}}});
  check_dtype(x.dtype(), {{"weights.gate_up", weights.gate_up}, {"weights.down", weights.down}});
  check_dtype(wide_dtype(x.dtype()), {{"row_gate", row_gate}});
  check_dtype(DType::kI64, {{"rows_per_expert", rows_per_expert}});
}

}  // namespace

void experts_forward(Context& ctx, Tensor out, Tensor gate_up_out, const Tensor& x, const Tensor& row_gate,
                     const Tensor& rows_per_expert, const ExpertWeights& weights) {
  const OperatorScope scope(ctx, "experts_forward");
  const int64_t R = x.dim(0), C = x.dim(1), F = weights.down.dim(2);
  check_inputs(x, row_gate, rows_per_expert, weights);
  check_shapes({{"gate_up_out", gate_up_out, {R, 2 * F}}});
  check_dtype(x.dtype(), {{"gate_up_out", gate_up_out}});
  if (out.defined()) {
    check_shapes({{"out", out, {R, C}}});
    check_dtype(x.dtype(), {{"out", out}});
  }
  if (R == 0) return;
  on_device<cpu::experts_forward, cuda::experts_forward>(ctx, out, gate_up_out, x, row_gate, rows_per_expert, weights);
}

void experts_backward_input(Context& ctx, Tensor d_x, Tensor d_row_gate, ExpertHidden hidden, const Tensor& d_out,
                            const Tensor& row_gate, const Tensor& gate_up_out, const Tensor& rows_per_expert,
                            const ExpertWeights& weights) {
  const OperatorScope scope(ctx, "experts_backward_input");
  const int64_t R = d_out.dim(0), C = d_out.dim(1), F = weights.down.dim(2);
  check_inputs(d_out, row_gate, rows_per_expert, weights);
  check_shapes({{"d_x", d_x, {R, C}},
                {"d_row_gate", d_row_gate, {R}},
                {"hidden.h", hidden.h, {R, F}},
                {"hidden.d_gate_up_out", hidden.d_gate_up_out, {R, 2 * F}},
                {"gate_up_out", gate_up_out, {R, 2 * F}}});
  check_dtype(d_out.dtype(), {{"d_x", d_x},
                              {"hidden.h", hidden.h},
                              {"hidden.d_gate_up_out", hidden.d_gate_up_out},
                              {"gate_up_out", gate_up_out}});
  check_dtype(wide_dtype(d_out.dtype()), {{"d_row_gate", d_row_gate}});
  if (R == 0) return;
  on_device<cpu::experts_backward_input, cuda::experts_backward_input>(ctx, d_x, d_row_gate, hidden, d_out, row_gate,
                                                                       gate_up_out, rows_per_expert, weights);
}

void experts_backward_weight(Context& ctx, ExpertWeights d_weights, const ExpertHidden& hidden, const Tensor& d_out,
                             const Tensor& x, const Tensor& rows_per_expert, Accumulate accumulate) {
  const OperatorScope scope(ctx, "experts_backward_weight");
  const int64_t R = x.dim(0), C = x.dim(1), El = rows_per_expert.dim(0), F = hidden.h.dim(1);
  check_shapes({{"d_weights.gate_up", d_weights.gate_up, {El, 2 * F, C}},
                {"d_weights.down", d_weights.down, {El, C, F}},
                {"hidden.h", hidden.h, {R, F}},
                {"hidden.d_gate_up_out", hidden.d_gate_up_out, {R, 2 * F}},
                {"d_out", d_out, {R, C}},
                {"x", x, {R, C}},
                {"rows_per_expert", rows_per_expert, {El}}});
  check_dtype(x.dtype(), {{"hidden.h", hidden.h}, {"hidden.d_gate_up_out", hidden.d_gate_up_out}, {"d_out", d_out}});
  check_dtype(d_weights.down.dtype() == x.dtype() ? x.dtype() : wide_dtype(x.dtype()),
              {{"d_weights.gate_up", d_weights.gate_up}, {"d_weights.down", d_weights.down}});
  check_dtype(DType::kI64, {{"rows_per_expert", rows_per_expert}});
  if (R == 0) {
    if (accumulate == Accumulate::kYes) return;
    fill_zero(ctx, d_weights.gate_up);
    fill_zero(ctx, d_weights.down);
    return;
  }
  on_device<cpu::experts_backward_weight, cuda::experts_backward_weight>(ctx, d_weights, hidden, d_out, x,
                                                                         rows_per_expert, accumulate);
}

Implementation experts_implementation(Context& ctx, const ExpertWeights& weights) {
  if constexpr (kWithCuda) {
    if (ctx.on_cuda()) return cuda::experts_implementation(ctx, weights);
  }
  return {"CPU", ""};
}

}  // namespace braid
