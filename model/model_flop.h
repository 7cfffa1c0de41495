#pragma once

#include <cstdint>

#include "model/config.h"
#include "model/recomputation.h"

namespace braid {

// Floating-point operations that one training step must do per token, forward and backward, for documents of
// `document_tokens` each; recomputation and padding do not count. 6 per multiply-add of the forward pass:
//   products of the projections, the convolution, the routed and shared experts, router, head, MTP projection;
//   delta rule 4 Dk Dv per value head; causal attention Hq Dh T.
// Convention as in Megatron-LM (num_floating_point_operations), with the router and with the MTP layer as what it is.
double training_flop_per_token(const ModelConfig& model, const MtpConfig& mtp, int64_t document_tokens);

// What backward does again, beside those.
double repeated_flop_per_token(const ModelConfig& model, const MtpConfig& mtp, int64_t document_tokens,
                               const Recomputation& recompute);

}  // namespace braid
