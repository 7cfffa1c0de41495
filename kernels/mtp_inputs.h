#pragma once

#include "kernels/core/context.h"
#include "kernels/core/tensor.h"

namespace braid {

struct MtpInputWeights {  // also holds their gradients
  Tensor embedding_norm;  // (C) zero-centred
  Tensor hidden_norm;     // (C) zero-centred
};
struct MtpInputs {
  Tensor joined;                       // (N, 2C)  [rms_norm(embedding) | rms_norm(hidden)]
  Tensor embedding_rstd, hidden_rstd;  // (N)
};

// What the projection of the MTP block reads: both inputs normalised, the embedding first.
//   embedding (N, C)  of the next token;  hidden (N, C)  of the main model, after its final norm;  joined:  fp32, bf16
//   (GPU) or fp64 (CPU);  norms and rstd in the wide dtype
// Source: Qwen3NextMultiTokenPredictor in vLLM.   Errors: ShapeError, DTypeError, naming the tensor.
void mtp_inputs_forward(Context& ctx, MtpInputs out, const Tensor& embedding, const Tensor& hidden,
                        const MtpInputWeights& weights, double eps);

//   d_embedding overwritten;  d_hidden += ;  d_weights +=
void mtp_inputs_backward(Context& ctx, Tensor d_embedding, Tensor d_hidden, MtpInputWeights d_weights,
                         const Tensor& d_joined, const Tensor& embedding, const Tensor& hidden, const MtpInputs& out,
                         const MtpInputWeights& weights);

}  // namespace braid
