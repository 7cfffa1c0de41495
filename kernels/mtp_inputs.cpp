#include "kernels/mtp_inputs.h"

#include "kernels/core/profile.h"
#include "kernels/on_device.h"

namespace braid {

namespace cpu {
decltype(braid::mtp_inputs_forward) mtp_inputs_forward;
decltype(braid::mtp_inputs_backward) mtp_inputs_backward;
}  // namespace cpu
namespace cuda {
decltype(braid::mtp_inputs_forward) mtp_inputs_forward;
decltype(braid::mtp_inputs_backward) mtp_inputs_backward;
}  // namespace cuda

void mtp_inputs_forward(Context& ctx, MtpInputs out, const Tensor& embedding, const Tensor& hidden,
                        const MtpInputWeights& weights, double eps) {
  const OperatorScope scope(ctx, "mtp_inputs_forward");
  const int64_t N = embedding.dim(0), C = embedding.dim(1);
  check_shapes({{"joined", out.joined, {N, 2 * C}},
                {"embedding_rstd", out.embedding_rstd, {N}},
                {"hidden_rstd", out.hidden_rstd, {N}},
                {"hidden", hidden, {N, C}},
                {"embedding_norm", weights.embedding_norm, {C}},
                {"hidden_norm", weights.hidden_norm, {C}}});
  check_dtype(embedding.dtype(), {{"joined", out.joined}, {"hidden", hidden}});
  check_dtype(wide_dtype(embedding.dtype()), {{"embedding_rstd", out.embedding_rstd},
                                              {"hidden_rstd", out.hidden_rstd},
                                              {"embedding_norm", weights.embedding_norm},
                                              {"hidden_norm", weights.hidden_norm}});
  if (N == 0) return;
  on_device<cpu::mtp_inputs_forward, cuda::mtp_inputs_forward>(ctx, out, embedding, hidden, weights, eps);
}

void mtp_inputs_backward(Context& ctx, Tensor d_embedding, Tensor d_hidden, MtpInputWeights d_weights,
                         const Tensor& d_joined, const Tensor& embedding, const Tensor& hidden, const MtpInputs& out,
                         const MtpInputWeights& weights) {
  const OperatorScope scope(ctx, "mtp_inputs_backward");
  const int64_t N = embedding.dim(0), C = embedding.dim(1);
  check_shapes({{"d_embedding", d_embedding, {N, C}},
                {"d_hidden", d_hidden, {N, C}},
                {"d_embedding_norm", d_weights.embedding_norm, {C}},
                {"d_hidden_norm", d_weights.hidden_norm, {C}},
                {"d_joined", d_joined, {N, 2 * C}},
                {"hidden", hidden, {N, C}},
                {"embedding_norm", weights.embedding_norm, {C}},
                {"hidden_norm", weights.hidden_norm, {C}}});
  check_dtype(embedding.dtype(),
              {{"d_embedding", d_embedding}, {"d_hidden", d_hidden}, {"d_joined", d_joined}, {"hidden", hidden}});
  check_dtype(wide_dtype(embedding.dtype()), {{"d_embedding_norm", d_weights.embedding_norm},
                                              {"d_hidden_norm", d_weights.hidden_norm},
                                              {"embedding_norm", weights.embedding_norm},
                                              {"hidden_norm", weights.hidden_norm}});
  if (N == 0) return;
  on_device<cpu::mtp_inputs_backward, cuda::mtp_inputs_backward>(ctx, d_embedding, d_hidden, d_weights, d_joined,
                                                                 embedding, hidden, out, weights);
}

}  // namespace braid
