#pragma once

#include "kernels/attention.h"
#include "kernels/attention_inputs.h"
#include "kernels/core/arena.h"
#include "kernels/core/context.h"
#include "model/config.h"
#include "model/layer_pass.h"
#include "model/parameters.h"

namespace braid {

struct GatedAttentionParams {    // weights; the same struct holds gradients
  Tensor q_proj;                 // (Hq 2 Dh, C)  per head: query rows, then gate rows; (Hq Dh, C) without gates
  Tensor k_proj, v_proj;         // (Hkv Dh, C)
  Tensor o_proj;                 // (C, Hq Dh)
  AttentionInputWeights inputs;  // q_norm, k_norm (Dh)
  static constexpr const char* kPrefix = "self_attn.";
  template <class Visit>
  void visit(const ModelConfig& c, Visit&& tensor) {
    const AttentionDims d = c.attention();
    const int64_t C = c.hidden_size, Dq = d.query_heads * d.head_dim, Dkv = d.kv_heads * d.head_dim;
    PackedRows queries;
    if (d.gated) queries = {d.query_heads, {d.head_dim, d.head_dim}};
    tensor("q_proj.weight", q_proj, {d.query_parts() * Dq, C}, Owner::kEveryRank, Init::kNormal, Decay::kYes, queries);
    tensor("k_proj.weight", k_proj, {Dkv, C}, Owner::kEveryRank, Init::kNormal, Decay::kYes);
    tensor("v_proj.weight", v_proj, {Dkv, C}, Owner::kEveryRank, Init::kNormal, Decay::kYes);
    tensor("o_proj.weight", o_proj, {C, Dq}, Owner::kEveryRank, Init::kOutputProjection, Decay::kYes);
    tensor("q_norm.weight", inputs.q_norm, {d.head_dim}, Owner::kEveryRank, Init::kZero, Decay::kQkNorm);
    tensor("k_norm.weight", inputs.k_norm, {d.head_dim}, Owner::kEveryRank, Init::kZero, Decay::kQkNorm);
  }
};

struct GatedAttentionSaved {
  AttentionProjections projections;  // before norm and rotation
  AttentionInputs inputs;
  Tensor v;                  // (N, Hkv, Dh)
  AttentionOutputs outputs;  // y undefined without gates: it is o
};

// Keys, rotated, and values of the tokens of a text so far.
struct GatedAttentionCache {
  Tensor k, v;  // (max_tokens, Hkv, Dh)
};

// Gated softmax attention mixer:
//   [query | gate], k, v = x W_q^T, x W_k^T, x W_v^T
//   out = (attention(rope(norm(query)), rope(norm(k)), v) * sigmoid(gate)) W_o^T
// With attn_output_gate off there is neither gate nor sigmoid.
// Source: Qwen3NextAttention in transformers; the switch is that of vLLM (Qwen3NextAttention, attn_output_gate).
class GatedAttention {
 public:
  using Params = GatedAttentionParams;
  using Saved = GatedAttentionSaved;
  using Cache = GatedAttentionCache;
  explicit GatedAttention(const ModelConfig& c) : dims_(c.attention()) {}
  // Of the forward pass of one token in documents of `document_tokens`.
  static double multiply_adds(const ModelConfig& c, int64_t document_tokens);
  static double output_multiply_adds(const ModelConfig& c);  // of them, of what is never made again
  void plan(SavedPlan& saved, GatedAttentionSaved& s, int64_t N, DType dtype) const;
  void plan_cache(Planner& planner, GatedAttentionCache& cache, int64_t max_tokens, DType dtype) const;
  //   x, out (N, C)
  void forward(Context& ctx, Tensor out, const Tensor& x, const GatedAttentionParams& p, GatedAttentionSaved& s,
               const LayerPass& pass, GatedAttentionCache* cache) const;
  //   d_x overwritten, g +=
  void backward(Context& ctx, Tensor d_x, GatedAttentionParams& g, const Tensor& d_out, const Tensor& x,
                const GatedAttentionParams& p, const GatedAttentionSaved& s, const LayerPass& pass) const;

 private:
  // Keys and values, or queries, as attention reads them: all of it, or what passes over elements make of the rest.
  void make_keys(Context& ctx, Remake what, const Tensor& x, const GatedAttentionParams& p,
                 const GatedAttentionSaved& s, const LayerPass& pass) const;
  void make_queries(Context& ctx, Remake what, const Tensor& x, const GatedAttentionParams& p,
                    const GatedAttentionSaved& s, const LayerPass& pass) const;

  AttentionDims dims_;
};

}  // namespace braid
