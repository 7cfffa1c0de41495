#pragma once

#include "kernels/core/context.h"
#include "kernels/core/implementation.h"
#include "kernels/core/segments.h"
#include "kernels/core/tensor.h"
#include "kernels/rotary.h"

namespace braid {

// Extents of an attention mixer.
struct AttentionDims {
  int64_t query_heads = 0;  // Hq, a multiple of Hkv
  int64_t kv_heads = 0;     // Hkv
  int64_t head_dim = 0;     // Dh
  int64_t rotary_dim = 0;   // even; the first rotary_dim of each head rotate, the others pass
  double rope_theta = 0;
  double eps = 0;  // of the q and k norms
  bool gated = true;
  int64_t query_parts() const { return gated ? 2 : 1; }  // of a head in the projection: query and, if gated, gate
  RopeParameters rope = {};                              // with original_max_position_embeddings, if it is yarn
};

struct AttentionProjections {  // also holds their gradients
  Tensor q_gate;               // (N, Hq, 2, Dh)   per head: query, then gate; (N, Hq, 1, Dh) without gates
  Tensor k;                    // (N, Hkv, Dh)
};
struct AttentionInputWeights {  // also holds their gradients
  Tensor q_norm, k_norm;        // (Dh)  zero-centred
};
struct AttentionInputs {
  Tensor q;               // (N, Hq, Dh)
  Tensor k;               // (N, Hkv, Dh)
  Tensor q_rstd, k_rstd;  // (N, Hq), (N, Hkv)
};

// Zero-centred RMS norm of every query and key head, then rotary position embedding on the first rotary_dim
// dimensions, pairs (i, i + rotary_dim / 2), inv_freq_i = theta^(-2 i / rotary_dim) or as dims.rope stretches it;
// positions restart at 0 in every document; tokens that came before a row (see Segments) count.
// The gate half of q_gate is not touched. With no query heads, or no key heads, a call makes the other half alone.
// Activations fp32, bf16 (GPU) or fp64 (CPU); norm weights, their gradients and rstd in the wide dtype. Angles are
// formed in fp32 as torch does, in fp64 for fp64 activations.
// Source: Qwen3NextAttention in transformers.   Errors: ShapeError, DTypeError, naming the tensor.
void attention_inputs_forward(Context& ctx, AttentionInputs out, const AttentionProjections& x,
                              const AttentionInputWeights& weights, const Segments& segments,
                              const AttentionDims& dims);

// Overwrites the query half of d_x.q_gate (the gate half belongs to attention_backward) and d_x.k; accumulates into
// d_weights: on the CPU one partial sum per document added in document order, on the GPU one per tile of tokens.
//   d_q (N, Hq, Dh), d_k (N, Hkv, Dh)
void attention_inputs_backward(Context& ctx, AttentionProjections d_x, AttentionInputWeights d_weights,
                               const Tensor& d_q, const Tensor& d_k, const AttentionInputs& out,
                               const AttentionProjections& x, const AttentionInputWeights& weights,
                               const Segments& segments, const AttentionDims& dims);

Implementation attention_inputs_implementation(Context& ctx, DType activation, const AttentionDims& dims);

}  // namespace braid
