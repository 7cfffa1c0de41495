#pragma once

#include "kernels/core/arena.h"
#include "kernels/core/context.h"
#include "kernels/gated_delta_rule.h"
#include "kernels/gdn_inputs.h"
#include "model/config.h"
#include "model/layer_pass.h"
#include "model/parameters.h"

namespace braid {

struct GatedDeltaNetParams {  // weights; the same struct holds gradients
  Tensor in_proj_qkvz;        // (qkvz columns, C)
  Tensor in_proj_ba;          // (2 Hv, C)
  GdnInputWeights inputs;     // conv (channels, 1, taps), a_log (Hv), dt_bias (Hv)
  Tensor norm;                // (Dv)  plain scale
  Tensor out_proj;            // (C, Hv Dv)
  static constexpr const char* kPrefix = "linear_attn.";
  template <class Visit>
  void visit(const ModelConfig& c, Visit&& tensor) {
    const GdnDims d = c.gdn();
    const int64_t C = c.hidden_size;
    const int64_t values = d.group() * d.value_dim;
    tensor("in_proj_qkvz.weight", in_proj_qkvz, {d.qkvz_columns(), C}, Owner::kEveryRank, Init::kNormal, Decay::kYes,
           {d.key_heads, {d.key_dim, d.key_dim, values, values}});
    tensor("in_proj_ba.weight", in_proj_ba, {d.ba_columns(), C}, Owner::kEveryRank, Init::kNormal, Decay::kYes,
           {d.key_heads, {d.group(), d.group()}});
    tensor("conv1d.weight", inputs.conv, {d.conv_channels(), 1, d.conv_kernel}, Owner::kEveryRank, Init::kConv,
           Decay::kYes);
    tensor("A_log", inputs.a_log, {d.value_heads}, Owner::kEveryRank, Init::kLogDecay, Decay::kNever);
    tensor("dt_bias", inputs.dt_bias, {d.value_heads}, Owner::kEveryRank, Init::kOne, Decay::kNever);
    tensor("norm.weight", norm, {d.value_dim}, Owner::kEveryRank, Init::kOne, Decay::kNever);
    tensor("out_proj.weight", out_proj, {C, d.value_heads * d.value_dim}, Owner::kEveryRank, Init::kOutputProjection,
           Decay::kYes);
  }
};

struct GatedDeltaNetSaved {
  GdnProjections projections;
  GdnInputs inputs;
  Tensor o;     // (N, Hv, Dv)
  Tensor rstd;  // (N, Hv)
  Tensor y;     // (N, Hv, Dv)
  // Where rows are parts of longer ones, R of them: what came from the parts before, and how states pass through these.
  // Little, and found by two passes of the rule and three transfers: always kept.
  Tensor halo;        // (R, taps - 1, qkvz columns)
  Tensor initial;     // (R, Hv, Dk, Dv)  wide
  Tensor transition;  // (R, Hv, Dk, Dk)  wide
};

// What the next tokens of a text need of those before: all of it in a size that does not grow.
struct GatedDeltaNetCache {
  Tensor halo;   // (1, taps - 1, qkvz columns)  the last rows of the projection
  Tensor state;  // (1, Hv, Dk, Dv)              of the delta rule; wide
};

// Gated DeltaNet mixer:
//   [q k v z], [b a] = x W_qkvz^T, x W_ba^T
//   out = (gated_rms_norm(delta_rule(conv and norms of q, k, v; gates of b, a), z)) W_out^T
// Source: Qwen3NextGatedDeltaNet in transformers.
class GatedDeltaNet {
 public:
  using Params = GatedDeltaNetParams;
  using Saved = GatedDeltaNetSaved;
  using Cache = GatedDeltaNetCache;
  explicit GatedDeltaNet(const ModelConfig& c) : dims_(c.gdn()), eps_(c.rms_norm_eps) {}
  // Of the forward pass of one token in documents of `document_tokens`.
  static double multiply_adds(const ModelConfig& c, int64_t document_tokens);
  static double output_multiply_adds(const ModelConfig& c);  // of them, of what is never made again
  void plan(SavedPlan& saved, GatedDeltaNetSaved& s, int64_t N, DType dtype) const;
  void plan_cache(Planner& planner, GatedDeltaNetCache& cache, int64_t max_tokens, DType dtype) const;
  //   x, out (N, C)
  void forward(Context& ctx, Tensor out, const Tensor& x, const GatedDeltaNetParams& p, GatedDeltaNetSaved& s,
               const LayerPass& pass, GatedDeltaNetCache* cache) const;
  //   d_x overwritten, g +=
  void backward(Context& ctx, Tensor d_x, GatedDeltaNetParams& g, const Tensor& d_out, const Tensor& x,
                const GatedDeltaNetParams& p, const GatedDeltaNetSaved& s, const LayerPass& pass) const;

 private:
  enum class Borders { kFind, kKept };
  // What backward reads, all of it or what passes over elements make of the rest.
  void make(Context& ctx, Remake what, Borders borders, const Tensor& x, const GatedDeltaNetParams& p,
            const GatedDeltaNetSaved& s, const LayerPass& pass, GatedDeltaNetCache* cache) const;
  void enter_states(Context& ctx, const GatedDeltaNetSaved& s, const LayerPass& pass) const;

  GdnDims dims_;
  double eps_;
};

}  // namespace braid
