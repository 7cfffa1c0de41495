#pragma once

#include "model/mixer.h"
#include "model/moe_layer.h"
#include "model/steps.h"

namespace braid {

struct DecoderLayerParams {
  Tensor input_norm, post_attention_norm;  // (C) zero-centred
  MixerParams mixer;
  MoeParams moe;

  explicit DecoderLayerParams(LayerType type) : mixer(Mixer::params(type)) {}
  template <class Visit>
  void visit(const ModelConfig& c, Visit&& tensor) {
    const Shape norm = {c.hidden_size};
    tensor("input_layernorm.weight", input_norm, norm, Owner::kEveryRank, Init::kZero, Decay::kNorm);
    std::visit([&](auto& kind) { kind.visit(c, with_prefix(kind.kPrefix, tensor)); }, mixer);
    tensor("post_attention_layernorm.weight", post_attention_norm, norm, Owner::kEveryRank, Init::kZero, Decay::kNorm);
    moe.visit(c, with_prefix("mlp.", tensor));
  }
};

struct DecoderLayerSaved {
  Tensor x;                     // (N, C)  residual stream at the mixer
  Tensor x_mid;                 // (N, C)  residual stream at the experts
  Tensor mixer_in, moe_in;      // (N, C)  after their norms
  Tensor mixer_rstd, moe_rstd;  // (N)
  Tensor x_squares, x_max;      // (1) F64  sum of the squares of x, its largest magnitude; numbers for metrics
  MixerSaved mixer;
  MoeSaved moe;
};

// One layer on the residual stream; the last addition is left to the next norm, which reads the stream anyway:
//   x += delta;  x_mid = x + mixer(norm(x));  delta = moe(norm(x_mid));   the stream behind the layer is x_mid + delta
class DecoderLayer {
 public:
  DecoderLayer(const ModelConfig& c, LayerType type, ExpertExchange& exchange);
  // Of the forward pass of one token in documents of `document_tokens`.
  static double multiply_adds(const ModelConfig& c, LayerType type, int64_t document_tokens) {
    return Mixer::multiply_adds(c, type, document_tokens) + MoeLayer::multiply_adds(c);
  }
  // Of them, those that backward does again.
  static double multiply_adds_again(const ModelConfig& c, LayerType type, int64_t document_tokens, Recompute recompute);
  void plan(SavedPlan& saved, DecoderLayerSaved& s, int64_t num_rows, int64_t N, DType dtype) const;
  void plan_cache(Planner& planner, MixerCache& cache, int64_t max_tokens, DType dtype) const {
    mixer_.plan_cache(planner, cache, max_tokens, dtype);
  }
  // Both passes pause where their two halves meet: of two micro-batches side by side, one then has the experts' half,
  // much of which is waiting, while the other has the mixer's.
  //   x (N, C): stream before the layer without delta;  delta (N, C): on entry what is still to be added to x
  Steps forward(Context& ctx, Tensor delta, const Tensor& x, const DecoderLayerParams& p, DecoderLayerSaved& s,
                const LayerPass& pass) const;
  //   d_stream (N, C): on entry the gradient of the stream behind the layer, on return that of x and of delta;  g +=
  Steps backward(Context& ctx, Tensor d_stream, DecoderLayerParams& g, const DecoderLayerParams& p,
                 const DecoderLayerSaved& s, const LayerPass& pass) const;

 private:
  double eps_;
  int64_t C_;
  Mixer mixer_;
  MoeLayer moe_;
};

}  // namespace braid
