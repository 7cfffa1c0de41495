#include "kernels/lm_head_loss.h"

#include "kernels/core/profile.h"
#include "kernels/on_device.h"

namespace braid {

namespace cpu {
decltype(braid::lm_head_loss_forward) lm_head_loss_forward;
decltype(braid::lm_head_loss_forward_backward) lm_head_loss_forward_backward;
}  // namespace cpu
namespace cuda {
decltype(braid::lm_head_loss_forward) lm_head_loss_forward;
decltype(braid::lm_head_loss_forward_backward) lm_head_loss_forward_backward;
}  // namespace cuda

namespace {

void check_inputs(const Tensor& loss_sums, const Tensor& hidden, const Tensor& weight, const Tensor& targets) {
  const int64_t N = hidden.dim(0), C = hidden.dim(1), V = weight.dim(0), B = loss_sums.dim(0);
  check_shapes({{"loss_sums", loss_sums, {B}},
                {"hidden", hidden, {N, C}},
                {"weight", weight, {V, C}},
                {"targets", targets, {N}}});
  check<ShapeError>(B > 0 && N % B == 0, "loss_sums: ", N, " tokens are not ", B, " rows of equal length");
  check_dtype(DType::kF64, {{"loss_sums", loss_sums}});
  check_dtype(DType::kI64, {{"targets", targets}});
  check_dtype(hidden.dtype(), {{"weight", weight}});
}

}  // namespace

void lm_head_loss_forward(Context& ctx, Tensor loss_sums, const Tensor& hidden, const Tensor& weight,
                          const Tensor& targets) {
  const OperatorScope scope(ctx, "lm_head_loss_forward");
  check_inputs(loss_sums, hidden, weight, targets);
  on_device<cpu::lm_head_loss_forward, cuda::lm_head_loss_forward>(ctx, loss_sums, hidden, weight, targets);
}

void lm_head_loss_forward_backward(Context& ctx, Tensor loss_sums, Tensor d_hidden, Tensor d_weight,
                                   const Tensor& hidden, const Tensor& weight, const Tensor& targets, double scale) {
  const OperatorScope scope(ctx, "lm_head_loss_forward_backward");
  check_inputs(loss_sums, hidden, weight, targets);
  check_shapes({{"d_hidden", d_hidden, hidden.shape()}, {"d_weight", d_weight, weight.shape()}});
  check_dtype(hidden.dtype(), {{"d_hidden", d_hidden}});
  check_dtype(wide_dtype(hidden.dtype()), {{"d_weight", d_weight}});
  on_device<cpu::lm_head_loss_forward_backward, cuda::lm_head_loss_forward_backward>(ctx, loss_sums, d_hidden, d_weight,
                                                                                     hidden, weight, targets, scale);
}

}  // namespace braid
