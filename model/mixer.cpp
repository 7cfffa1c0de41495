#include "model/mixer.h"

namespace braid {
namespace {

Mixers::Kind make_kind(const ModelConfig& c, LayerType type) {
  return with_mixer_kind(type, [&]<class Kind>(std::type_identity<Kind>) { return Mixers::Kind(Kind(c)); });
}

}  // namespace

Mixer::Mixer(const ModelConfig& c, LayerType type) : kind_(make_kind(c, type)) {}

MixerParams Mixer::params(LayerType type) {
  return with_mixer_kind(type,
                         []<class Kind>(std::type_identity<Kind>) { return MixerParams(typename Kind::Params()); });
}

double Mixer::multiply_adds(const ModelConfig& c, LayerType type, int64_t document_tokens) {
  return with_mixer_kind(type,
                         [&]<class Kind>(std::type_identity<Kind>) { return Kind::multiply_adds(c, document_tokens); });
}

double Mixer::output_multiply_adds(const ModelConfig& c, LayerType type) {
  return with_mixer_kind(type, [&]<class Kind>(std::type_identity<Kind>) { return Kind::output_multiply_adds(c); });
}

void Mixer::plan(SavedPlan& saved, MixerSaved& s, int64_t N, DType dtype) const {
  std::visit(
      [&]<class Kind>(const Kind& kind) {
        Planner::Scope scope(saved.planner(), Kind::Params::kPrefix);
        kind.plan(saved, s.emplace<typename Kind::Saved>(), N, dtype);
      },
      kind_);
}

void Mixer::plan_cache(Planner& planner, MixerCache& cache, int64_t max_tokens, DType dtype) const {
  std::visit(
      [&]<class Kind>(const Kind& kind) {
        kind.plan_cache(planner, cache.kind.emplace<typename Kind::Cache>(), max_tokens, dtype);
      },
      kind_);
}

void Mixer::forward(Context& ctx, Tensor out, const Tensor& x, const MixerParams& p, MixerSaved& s,
                    const LayerPass& pass) const {
  std::visit(
      [&]<class Kind>(const Kind& kind) {
        kind.forward(ctx, out, x, std::get<typename Kind::Params>(p), std::get<typename Kind::Saved>(s), pass,
                     pass.cache ? &std::get<typename Kind::Cache>(pass.cache->kind) : nullptr);
      },
      kind_);
}

void Mixer::backward(Context& ctx, Tensor d_x, MixerParams& g, const Tensor& d_out, const Tensor& x,
                     const MixerParams& p, const MixerSaved& s, const LayerPass& pass) const {
  std::visit(
      [&]<class Kind>(const Kind& kind) {
        kind.backward(ctx, d_x, std::get<typename Kind::Params>(g), d_out, x, std::get<typename Kind::Params>(p),
                      std::get<typename Kind::Saved>(s), pass);
      },
      kind_);
}

}  // namespace braid
