#pragma once

#include "kernels/core/context.h"
#include "kernels/core/implementation.h"
#include "kernels/core/segments.h"
#include "kernels/core/tensor.h"
#include "kernels/gated_delta_rule.h"

namespace braid {

// Extents of a Gated DeltaNet mixer and the column order of its packed projections.
struct GdnDims {
  int64_t key_heads = 0;    // Hk
  int64_t value_heads = 0;  // Hv, a multiple of Hk
  int64_t key_dim = 0;      // Dk
  int64_t value_dim = 0;    // Dv
  int64_t conv_kernel = 0;  // taps of the causal convolution

  constexpr int64_t group() const { return value_heads / key_heads; }  // value heads per key head
  // Columns of qkvz: one block per key head with q (Dk), k (Dk), v (group * Dv), z (group * Dv).
  constexpr int64_t block() const { return 2 * key_dim + 2 * group() * value_dim; }
  constexpr int64_t qkvz_columns() const { return key_heads * block(); }
  constexpr int64_t q_column(int64_t key_head) const { return key_head * block(); }
  constexpr int64_t k_column(int64_t key_head) const { return key_head * block() + key_dim; }
  constexpr int64_t v_column(int64_t value_head) const {
    return value_head / group() * block() + 2 * key_dim + value_head % group() * value_dim;
  }
  constexpr int64_t z_column(int64_t value_head) const { return v_column(value_head) + group() * value_dim; }
  // Columns of ba: one block per key head with b (group), a (group).
  constexpr int64_t ba_columns() const { return 2 * value_heads; }
  constexpr int64_t b_column(int64_t value_head) const {
    return value_head / group() * 2 * group() + value_head % group();
  }
  constexpr int64_t a_column(int64_t value_head) const { return b_column(value_head) + group(); }
  // Channels of the convolution, in flat order: all q, then all k, then all v. z does not pass it.
  constexpr int64_t conv_channels() const { return 2 * key_heads * key_dim + value_heads * value_dim; }
  constexpr int64_t q_channel(int64_t key_head) const { return key_head * key_dim; }
  constexpr int64_t k_channel(int64_t key_head) const { return (key_heads + key_head) * key_dim; }
  constexpr int64_t v_channel(int64_t value_head) const { return 2 * key_heads * key_dim + value_head * value_dim; }
};

struct GdnProjections {  // also holds their gradients
  Tensor qkvz;           // (N, qkvz_columns)
  Tensor ba;             // (N, ba_columns)  logits in the wide dtype, their gradient an activation
};
struct GdnInputWeights {  // also holds their gradients; wide
  Tensor conv;            // (conv_channels, 1, conv_kernel); tap conv_kernel - 1 multiplies the current token
  Tensor a_log;           // (Hv)
  Tensor dt_bias;         // (Hv)
};
struct GdnInputs {
  DeltaRuleInputs rule;
  Tensor q_rstd, k_rstd;  // (N, Hk)  wide
};

// From the packed projections to what the delta rule reads, in one pass:
//   u[t, c]   = sum_j conv[c, j] x[t - conv_kernel + 1 + j, c], taps before the document's start are 0;  y = silu(u)
//   q, k      = l2norm(y) = y / sqrt(sum(y^2) + 1e-6) over the head;  v = y
//   beta      = sigmoid(b)
//   log_decay = -exp(a_log) softplus(a + dt_bias),   softplus(x) = x for x > 20
// Activations are fp32, bf16 (GPU) or fp64 (CPU). Taps and gates are computed in the wide dtype and rounded once.
//   halo (B, conv_kernel - 1, qkvz_columns)  of the dtype of qkvz: the rows of qkvz before the first token of each row
//        of the batch, of which as many are read as `segments` says that tokens came before the row; needed where it
//        says so.
// Source: Qwen3NextGatedDeltaNet in transformers.   Errors: ShapeError, DTypeError, naming the tensor.
void gdn_inputs_forward(Context& ctx, GdnInputs out, const GdnProjections& x, const GdnInputWeights& weights,
                        const Segments& segments, const GdnDims& dims, const Tensor& halo = {});

// Overwrites the q, k and v columns of d_x.qkvz (z belongs to gated_rms_norm_backward) and all of d_x.ba; accumulates
// into d_weights partial sums of tiles, added in order. On the CPU tiles restart at every document: packed and separate
// documents give the same bits, for every thread count. `out` is what the forward wrote; `d_out` the gradients of the
// delta rule's inputs.
struct GdnHalo {
  Tensor rows;  // what forward read as its halo
  // like it, overwritten: their gradient, 0 where they were not read, which is to be added where they came from; may be
  // undefined
  Tensor d_rows;
};
void gdn_inputs_backward(Context& ctx, GdnProjections d_x, GdnInputWeights d_weights, const DeltaRuleInputs& d_out,
                         const GdnInputs& out, const GdnProjections& x, const GdnInputWeights& weights,
                         const Segments& segments, const GdnDims& dims, const GdnHalo& halo = {});

Implementation gdn_inputs_implementation(Context& ctx, DType activation, const GdnDims& dims);

}  // namespace braid
