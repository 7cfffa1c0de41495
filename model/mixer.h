#pragma once

#include <type_traits>
#include <variant>

#include "model/gated_attention.h"
#include "model/gated_delta_net.h"

namespace braid {

// The part of a layer that mixes along the sequence. A kind of mixer is a class with
//   Params        its tensors: visit, and kPrefix, under which the layer names them
//   Saved         what its forward keeps for its backward
//   Cache         what is left of the tokens before, for a text that comes in pieces
//   plan, plan_cache, forward, backward, multiply_adds, output_multiply_adds
//   What backward makes again (see recompute.h) it makes by the lines of forward.
// and is named in the list and in the switch below.
template <class... Kinds>
struct MixerKinds {
  using Kind = std::variant<Kinds...>;
  using Params = std::variant<typename Kinds::Params...>;
  using Saved = std::variant<typename Kinds::Saved...>;
  using Cache = std::variant<typename Kinds::Cache...>;
};
using Mixers = MixerKinds<GatedDeltaNet, GatedAttention>;
using MixerParams = Mixers::Params;
using MixerSaved = Mixers::Saved;
struct MixerCache {
  Mixers::Cache kind;
};

// body(std::type_identity<Kind>()) with the kind that a layer of this type has. A type without a case does not compile.
template <class Body>
auto with_mixer_kind(LayerType type, Body&& body) {
  switch (type) {
    case LayerType::kLinearAttention: return body(std::type_identity<GatedDeltaNet>());
    case LayerType::kFullAttention: return body(std::type_identity<GatedAttention>());
  }
  throw ConfigError(concat("layer type ", static_cast<int>(type), " does not exist"));
}

// A mixer of the kind that the layer type asks for. Params and Saved must be those of the same layer type.
class Mixer {
 public:
  Mixer(const ModelConfig& c, LayerType type);
  static MixerParams params(LayerType type);
  // Multiply-adds of the forward pass of one token in documents of `document_tokens`.
  static double multiply_adds(const ModelConfig& c, LayerType type, int64_t document_tokens);
  static double output_multiply_adds(const ModelConfig& c, LayerType type);  // of them, of what is never made again

  void plan(SavedPlan& saved, MixerSaved& s, int64_t N, DType dtype) const;
  // For a text of up to max_tokens. Zeroed memory, which an arena gives, is a text that has not begun.
  void plan_cache(Planner& planner, MixerCache& cache, int64_t max_tokens, DType dtype) const;
  //   x, out (N, C)
  void forward(Context& ctx, Tensor out, const Tensor& x, const MixerParams& p, MixerSaved& s,
               const LayerPass& pass) const;
  //   d_x overwritten, g +=
  void backward(Context& ctx, Tensor d_x, MixerParams& g, const Tensor& d_out, const Tensor& x, const MixerParams& p,
                const MixerSaved& s, const LayerPass& pass) const;

 private:
  Mixers::Kind kind_;
};

}  // namespace braid
