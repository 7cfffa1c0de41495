#include "kernels/mtp_inputs.h"

#include "kernels/cuda/rms_norm.cuh"

// Two norms that write, or read, their half of the joined rows.
namespace braid::cuda {

void mtp_inputs_forward(Context& ctx, MtpInputs out, const Tensor& embedding, const Tensor& hidden,
                        const MtpInputWeights& weights, double eps) {
  const int64_t C = embedding.dim(1);
  norm_forward(ctx, out.joined, {0, 2 * C}, out.embedding_rstd, embedding, weights.embedding_norm, eps);
  norm_forward(ctx, out.joined, {C, 2 * C}, out.hidden_rstd, hidden, weights.hidden_norm, eps);
}

void mtp_inputs_backward(Context& ctx, Tensor d_embedding, Tensor d_hidden, MtpInputWeights d_weights,
                         const Tensor& d_joined, const Tensor& embedding, const Tensor& hidden, const MtpInputs& out,
                         const MtpInputWeights& weights) {
  const int64_t C = embedding.dim(1);
  norm_backward(ctx, d_embedding, InputGradient::kOverwrite, d_weights.embedding_norm, d_joined, {0, 2 * C}, embedding,
                weights.embedding_norm, out.embedding_rstd);
  norm_backward(ctx, d_hidden, InputGradient::kAdd, d_weights.hidden_norm, d_joined, {C, 2 * C}, hidden,
                weights.hidden_norm, out.hidden_rstd);
}

}  // namespace braid::cuda
