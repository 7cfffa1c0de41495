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

// The last rows of qkvz in the parts of all ranks, on their way here: (places, H, columns).
Tensor start_gather_halo(Context& ctx, Scratch& scratch, const Shape& halo, const Tensor& qkvz,
                         const ContextGroup& context) {
  const int64_t R = halo[0], H = halo[1], T = qkvz.dim(0) / R;
  if (H == 0) return {};
  Tensor own = scratch.tensor(halo, qkvz.dtype());
  for (int64_t row = 0; row < R; ++row) copy(ctx, own.rows(row, row + 1), qkvz.rows((row + 1) * T - H, (row + 1) * T));
  return context.start_gather(ctx, scratch, own);
}

// halo (R, H, columns) = of them those before the parts of this batch
void finish_gather_halo(Context& ctx, Tensor halo, const Tensor& all, const ContextGroup& context) {
  if (!all.defined()) return;
  const int64_t R = halo.dim(0);
  context.wait(ctx);
  for (int64_t row = 0; row < R; ++row) {
    const int64_t part = context.part_of(row);
    Tensor to = halo.rows(row, row + 1);
    if (part == 0) {
      fill_zero(ctx, to);
      continue;
    }
    const int64_t place = context.place(context.whole_row_of(row), part - 1, R);
    copy(ctx, to, all.rows(place, place + 1));
  }
}

// d_qkvz of the last rows of every part += what the parts behind found as the gradient of their halo
void return_halo_gradient(Context& ctx, Tensor d_qkvz, const Tensor& d_halo, const ContextGroup& context) {
  const int64_t R = d_halo.dim(0), H = d_halo.dim(1), T = d_qkvz.dim(0) / R, columns = d_halo.dim(2);
  if (H == 0) return;
  Scratch scratch(ctx);
  const Tensor all = context.start_gather(ctx, scratch, d_halo);
  context.wait(ctx);
  for (int64_t row = 0; row < R; ++row) {
    const int64_t behind = context.part_of(row) + 1;
    if (behind == context.share().num_parts()) continue;
    const int64_t place = context.place(context.whole_row_of(row), behind, R);
    add(ctx, d_qkvz.rows((row + 1) * T - H, (row + 1) * T), all.rows(place, place + 1).view({H, columns}));
  }
}

// states (R, Hv, Dk, Dv) at the borders of the parts of this batch, from the transitions and contributions of all parts
// before them (kForward), or behind them.
void carry_over_parts(Context& ctx, Tensor states, const Tensor& transitions, const Tensor& contributions,
                      const ContextGroup& context, StateDirection direction) {
  const int64_t R = states.dim(0);
  std::vector<std::vector<int64_t>> ways(static_cast<size_t>(R));
  for (int64_t row = 0; row < R; ++row) {
    const int64_t part = context.part_of(row), whole_row = context.whole_row_of(row);
    if (direction == StateDirection::kForward)
      for (int64_t p = 0; p < part; ++p) ways[row].push_back(context.place(whole_row, p, R));
    else
      for (int64_t p = context.share().num_parts() - 1; p > part; --p)
        ways[row].push_back(context.place(whole_row, p, R));
  }
  carry_states(ctx, states, transitions, contributions, ways, direction);
}

// States of rows from which, or into which, no document goes.
void clear_rows(Context& ctx, Tensor states, const std::vector<int64_t>& tokens_beyond) {
  for (int64_t row = 0; row < states.dim(0); ++row)
    if (tokens_beyond[row] == 0) fill_zero(ctx, states.rows(row, row + 1));
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
  const int64_t R = saved.num_parts();
  if (R == 0) return;
  saved.keep("halo", s.halo, {R, taps - 1, dims_.qkvz_columns()}, dtype);
  saved.keep("initial", s.initial, {R, Hv, Dk, Dv}, wide);
  saved.keep("transition", s.transition, {R, Hv, Dk, Dk}, wide);
}

void GatedDeltaNet::plan_cache(Planner& planner, GatedDeltaNetCache& cache, int64_t, DType dtype) const {
  planner.add("halo", cache.halo, {1, dims_.conv_kernel - 1, dims_.qkvz_columns()}, dtype);
  planner.add("state", cache.state, {1, dims_.value_heads, dims_.key_dim, dims_.value_dim}, wide_dtype(dtype));
}

void GatedDeltaNet::make(Context& ctx, Remake what, Borders borders, const Tensor& x, const GatedDeltaNetParams& p,
                         const GatedDeltaNetSaved& s, const LayerPass& pass, GatedDeltaNetCache* cache) const {
  const bool all = what == Remake::kEverything, find = borders == Borders::kFind && pass.context;
  Scratch scratch(ctx);
  Tensor halos;
  if (all) linear_forward(ctx, s.projections.qkvz, x, p.in_proj_qkvz);
  if (find) halos = start_gather_halo(ctx, scratch, s.halo.shape(), s.projections.qkvz, *pass.context);
  if (all) linear_forward(ctx, s.projections.ba, x, p.in_proj_ba);
  if (pass.context) {
    if (find) finish_gather_halo(ctx, s.halo, halos, *pass.context);
    gdn_inputs_forward(ctx, s.inputs, s.projections, p.inputs, pass.segments, dims_, s.halo);
    if (find) enter_states(ctx, s, pass);
    if (all) gated_delta_rule_forward(ctx, s.o, s.inputs.rule, pass.segments, {s.initial, {}});
  } else if (cache) {
    gdn_inputs_forward(ctx, s.inputs, s.projections, p.inputs, pass.segments, dims_, cache->halo);
    gated_delta_rule_forward(ctx, s.o, s.inputs.rule, pass.segments, {cache->state, cache->state});
    advance_halo(ctx, cache->halo, s.projections.qkvz);
  } else {
    gdn_inputs_forward(ctx, s.inputs, s.projections, p.inputs, pass.segments, dims_);
    if (all) gated_delta_rule_forward(ctx, s.o, s.inputs.rule, pass.segments);
  }
  gated_rms_norm_forward(ctx, s.y, s.rstd, s.o, s.projections.qkvz, p.norm, eps_, dims_);
}

// The states before the parts of this batch. All ranks work at once: each finds how states pass its parts, and what the
// parts add; a chain would have them wait for one another. The first travels beside the second's computation.
void GatedDeltaNet::enter_states(Context& ctx, const GatedDeltaNetSaved& s, const LayerPass& pass) const {
  const ContextGroup& context = *pass.context;
  Scratch scratch(ctx);
  Tensor contribution = scratch.tensor(s.initial.shape(), s.initial.dtype());
  gated_delta_rule_transition(ctx, s.transition, s.inputs.rule, pass.segments);
  const Tensor transitions = context.start_gather(ctx, scratch, s.transition);
  gated_delta_rule_forward(ctx, {}, s.inputs.rule, pass.segments, {{}, contribution});
  clear_rows(ctx, contribution, pass.segments.tokens_behind);
  const Tensor contributions = context.start_gather(ctx, scratch, contribution);
  context.wait(ctx);
  carry_over_parts(ctx, s.initial, transitions, contributions, context, StateDirection::kForward);
}

void GatedDeltaNet::forward(Context& ctx, Tensor out, const Tensor& x, const GatedDeltaNetParams& p,
                            GatedDeltaNetSaved& s, const LayerPass& pass, GatedDeltaNetCache* cache) const {
  make(ctx, Remake::kEverything, Borders::kFind, x, p, s, pass, cache);
  linear_forward(ctx, out, s.y.view({x.dim(0), p.out_proj.dim(1)}), p.out_proj);
}

void GatedDeltaNet::backward(Context& ctx, Tensor d_x, GatedDeltaNetParams& g, const Tensor& d_out, const Tensor& x,
                             const GatedDeltaNetParams& p, const GatedDeltaNetSaved& s, const LayerPass& pass) const {
  if (const Remake again = remake_of(LayerPart::kMixer, pass.recompute); again != Remake::kNothing)
    make(ctx, again, Borders::kKept, x, p, s, pass, nullptr);
  Scratch scratch(ctx);
  const int64_t N = x.dim(0);
  auto like = [&](const Tensor& t) { return scratch.tensor(t.shape(), t.dtype()); };
  const ContextGroup* context = pass.context;
  Tensor transitions, contributions;
  if (context) transitions = context->start_gather(ctx, scratch, s.transition);

  Tensor d_y = like(s.y);
  linear_backward_input(ctx, d_y.view({N, p.out_proj.dim(1)}), d_out, p.out_proj);

  Tensor d_o = like(s.o);
  GdnProjections d_projections = {like(s.projections.qkvz), scratch.tensor(s.projections.ba.shape(), x.dtype())};
  gated_rms_norm_backward(ctx, d_o, d_projections.qkvz, g.norm, d_y, s.o, s.rstd, s.projections.qkvz, p.norm, dims_);
  const DeltaRuleInputs& in = s.inputs.rule;
  if (context) {
    Tensor contribution = like(s.initial);
    gated_delta_rule_backward(ctx, {}, d_o, in, pass.segments, {{}, contribution, {}});
    clear_rows(ctx, contribution, pass.segments.tokens_before);
    contributions = context->start_gather(ctx, scratch, contribution);
  }
  linear_backward_weight(ctx, g.out_proj, d_out, s.y.view({N, p.out_proj.dim(1)}));  // beside what travels

  DeltaRuleInputs d_in = {like(in.q), like(in.k), like(in.v), like(in.beta), like(in.log_decay)};
  if (context) {
    Tensor d_final = like(s.initial), d_halo = like(s.halo);
    context->wait(ctx);
    carry_over_parts(ctx, d_final, transitions, contributions, *context, StateDirection::kBackward);
    gated_delta_rule_backward(ctx, d_in, d_o, in, pass.segments, {s.initial, {}, d_final});
    gdn_inputs_backward(ctx, d_projections, g.inputs, d_in, s.inputs, s.projections, p.inputs, pass.segments, dims_,
                        {s.halo, d_halo});
    return_halo_gradient(ctx, d_projections.qkvz, d_halo, *context);
  } else {
    gated_delta_rule_backward(ctx, d_in, d_o, in, pass.segments);
    gdn_inputs_backward(ctx, d_projections, g.inputs, d_in, s.inputs, s.projections, p.inputs, pass.segments, dims_);
  }

  linear_backward_weight(ctx, g.in_proj_qkvz, d_projections.qkvz, x);
  linear_backward_weight(ctx, g.in_proj_ba, d_projections.ba, x);
  linear_backward_input(ctx, d_x, d_projections.qkvz, p.in_proj_qkvz);
  linear_backward_input(ctx, d_x, d_projections.ba, p.in_proj_ba, Accumulate::kYes);
}

}  // namespace braid
