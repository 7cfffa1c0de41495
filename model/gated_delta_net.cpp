#include "model/gated_delta_net.h"

#include <algorithm>

#include "kernels/core/copy.h"
#include "kernels/gated_rms_norm.h"
#include "kernels/matmul.h"

namespace braid {
namespace {

// The last rows of the halo and of the projection behind it become the halo.
void advance_halo(Context& ctx, Tensor halo, const Tensor& qkvz) {
  const int64_t H = halo.dim(1), N = qkvz.dim(0), columns = qkvz.dim(1), kept = std::max<int64_t>(0, H - N);
  if (H == 0) return;
  Tensor rows = halo.view({H, columns});
  for (int64_t i = 0; i < kept; ++i) copy(ctx, rows.rows(i, i + 1), rows.rows(i + N, i + N + 1));
  copy(ctx, rows.rows(kept, H), qkvz.rows(N - (H - kept), N));
}

}  // namespace

double GatedDeltaNet::multiply_adds(const ModelConfig& c, int64_t) {
  const GdnDims d = c.gdn();
  const double C = double(c.hidden_size), value_width = double(d.value_heads * d.value_dim);
  return C * double(d.qkvz_columns() + d.ba_columns()) + double(d.conv_channels() * d.conv_kernel) + value_width * C +
         double(d.value_heads * d.key_dim * d.value_dim) * 4;
}

double GatedDeltaNet::output_multiply_adds(const ModelConfig& c) {
  return double(c.hidden_size) * double(c.gdn().value_heads * c.gdn().value_dim);
}

void GatedDeltaNet::plan(SavedPlan& saved, GatedDeltaNetSaved& s, int64_t N, DType dtype) const {
  const auto [Hk, Hv, Dk, Dv, taps] = dims_;
  const DType wide = wide_dtype(dtype);
  saved.by_products("qkvz", s.projections.qkvz, {N, dims_.qkvz_columns()}, dtype);
  saved.by_products("ba", s.projections.ba, {N, dims_.ba_columns()}, wide);
  saved.by_elements("q", s.inputs.rule.q, {N, Hk, Dk}, dtype);
  saved.by_elements("k", s.inputs.rule.k, {N, Hk, Dk}, dtype);
  saved.by_elements("v", s.inputs.rule.v, {N, Hv, Dv}, dtype);
  saved.by_elements("beta", s.inputs.rule.beta, {N, Hv}, wide);
  saved.by_elements("log_decay", s.inputs.rule.log_decay, {N, Hv}, wide);
  saved.by_elements("q_rstd", s.inputs.q_rstd, {N, Hk}, wide);
  saved.by_elements("k_rstd", s.inputs.k_rstd, {N, Hk}, wide);
  saved.by_products("o", s.o, {N, Hv, Dv}, dtype);
  saved.by_elements("rstd", s.rstd, {N, Hv}, wide);
  saved.by_elements("y", s.y, {N, Hv, Dv}, dtype);
}

void GatedDeltaNet::plan_cache(Planner& planner, GatedDeltaNetCache& cache, int64_t, DType dtype) const {
  planner.add("halo", cache.halo, {1, dims_.conv_kernel - 1, dims_.qkvz_columns()}, dtype);
  planner.add("state", cache.state, {1, dims_.value_heads, dims_.key_dim, dims_.value_dim}, wide_dtype(dtype));
}

void GatedDeltaNet::make(Context& ctx, Remake what, const Tensor& x, const GatedDeltaNetParams& p,
                         const GatedDeltaNetSaved& s, const LayerPass& pass, GatedDeltaNetCache* cache) const {
  const bool all = what == Remake::kEverything;
  if (all) {
    linear_forward(ctx, s.projections.qkvz, x, p.in_proj_qkvz);
    linear_forward(ctx, s.projections.ba, x, p.in_proj_ba);
  }
  if (cache) {
    gdn_inputs_forward(ctx, s.inputs, s.projections, p.inputs, pass.segments, dims_, cache->halo);
    gated_delta_rule_forward(ctx, s.o, s.inputs.rule, pass.segments, {cache->state, cache->state});
    advance_halo(ctx, cache->halo, s.projections.qkvz);
  } else {
    gdn_inputs_forward(ctx, s.inputs, s.projections, p.inputs, pass.segments, dims_);
    if (all) gated_delta_rule_forward(ctx, s.o, s.inputs.rule, pass.segments);
  }
  gated_rms_norm_forward(ctx, s.y, s.rstd, s.o, s.projections.qkvz, p.norm, eps_, dims_);
}

void GatedDeltaNet::forward(Context& ctx, Tensor out, const Tensor& x, const GatedDeltaNetParams& p,
                            GatedDeltaNetSaved& s, const LayerPass& pass, GatedDeltaNetCache* cache) const {
  make(ctx, Remake::kEverything, x, p, s, pass, cache);
  linear_forward(ctx, out, s.y.view({x.dim(0), p.out_proj.dim(1)}), p.out_proj);
}

void GatedDeltaNet::backward(Context& ctx, Tensor d_x, GatedDeltaNetParams& g, const Tensor& d_out, const Tensor& x,
                             const GatedDeltaNetParams& p, const GatedDeltaNetSaved& s,
                             const LayerPass& pass) const {
  if (const Remake again = remake_of(LayerPart::kMixer, pass.recompute); again != Remake::kNothing)
    make(ctx, again, x, p, s, pass, nullptr);
  Scratch scratch(ctx);
  const int64_t N = x.dim(0);
  auto like = [&](const Tensor& t) { return scratch.tensor(t.shape(), t.dtype()); };

  Tensor d_y = like(s.y);
  linear_backward_weight(ctx, g.out_proj, d_out, s.y.view({N, p.out_proj.dim(1)}));
  linear_backward_input(ctx, d_y.view({N, p.out_proj.dim(1)}), d_out, p.out_proj);

  Tensor d_o = like(s.o);
  GdnProjections d_projections = {like(s.projections.qkvz), scratch.tensor(s.projections.ba.shape(), x.dtype())};
  gated_rms_norm_backward(ctx, d_o, d_projections.qkvz, g.norm, d_y, s.o, s.rstd, s.projections.qkvz, p.norm, dims_);

  const DeltaRuleInputs& in = s.inputs.rule;
  DeltaRuleInputs d_in = {like(in.q), like(in.k), like(in.v), like(in.beta), like(in.log_decay)};
  gated_delta_rule_backward(ctx, d_in, d_o, in, pass.segments);
  gdn_inputs_backward(ctx, d_projections, g.inputs, d_in, s.inputs, s.projections, p.inputs, pass.segments, dims_);

  linear_backward_weight(ctx, g.in_proj_qkvz, d_projections.qkvz, x);
  linear_backward_weight(ctx, g.in_proj_ba, d_projections.ba, x);
  linear_backward_input(ctx, d_x, d_projections.qkvz, p.in_proj_qkvz);
  linear_backward_input(ctx, d_x, d_projections.ba, p.in_proj_ba, Accumulate::kYes);
}

}  // namespace braid
