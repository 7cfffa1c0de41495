#include "model/gated_attention.h"

#include <numeric>

#include "kernels/core/copy.h"
#include "kernels/matmul.h"
#include "parallel/rounded_reduction.h"

namespace braid {
namespace {

// (N, heads, …) as the (N, columns) matrix that a projection reads or writes.
Tensor flat(const Tensor& t) { return t.view({t.dim(0), t.dim(0) == 0 ? 0 : t.numel() / t.dim(0)}); }

bool gated(const GatedAttentionSaved& s) { return s.outputs.y.defined(); }

AttentionTensors attention_tensors(const GatedAttentionSaved& s) {
  return {s.inputs.q, s.inputs.k, s.v, gated(s) ? s.projections.q_gate : Tensor()};
}
AttentionOutputs attention_outputs(const GatedAttentionSaved& s) {
  AttentionOutputs out = s.outputs;
  if (!gated(s)) out.y = out.o;
  return out;
}

// body(first key, first place token, number): pieces of the keys of this batch's documents, in order, and where they
// lie among what was gathered. Keys are those before each row and the row's own.
template <class Body>
void for_each_piece(const ContextGroup& context, const Segments& segments, Body&& body) {
  const int64_t R = segments.num_rows, T = segments.row_tokens;
  for (int64_t row = 0, key = 0; row < R; ++row) {
    const int64_t part = context.part_of(row);
    int64_t token = part * T - segments.before(row);  // of the whole row
    while (token < (part + 1) * T) {
      const int64_t count = (token / T + 1) * T - token;
      body(key, context.place(context.whole_row_of(row), token / T, R) * T + token % T, count);
      token += count;
      key += count;
    }
  }
}

int64_t num_keys(const Segments& segments) {
  return std::accumulate(segments.tokens_before.begin(), segments.tokens_before.end(), segments.num_tokens());
}

// own (N, Hkv, Dh) of all ranks, and of them keys (M, Hkv, Dh) as attention wants them.
void gather_keys(Context& ctx, Tensor keys, const Tensor& own, const ContextGroup& context, const Segments& segments) {
  Scratch scratch(ctx);
  Tensor all = scratch.tensor({context.share().count * own.dim(0), own.dim(1), own.dim(2)}, own.dtype());
  context.gather(ctx, all, own);
  for_each_piece(context, segments, [&](int64_t key, int64_t token, int64_t count) {
    copy(ctx, keys.rows(key, key + count), all.rows(token, token + count));
  });
}

// d_own (N, Hkv, Dh) = the sum of what all ranks have in d_keys (M, Hkv, Dh), in their order
void return_key_gradients(Context& ctx, Tensor d_own, const Tensor& d_keys, const ContextGroup& context,
                          const Segments& segments) {
  Scratch scratch(ctx);
  Tensor all = scratch.tensor({context.share().count * d_own.dim(0), d_own.dim(1), d_own.dim(2)}, d_own.dtype());
  fill_zero(ctx, all);
  for_each_piece(context, segments, [&](int64_t key, int64_t token, int64_t count) {
    add(ctx, all.rows(token, token + count), d_keys.rows(key, key + count));
  });
  reduce_scatter_rounded(ctx, context.ranks(), d_own, all);
}

}  // namespace

double GatedAttention::multiply_adds(const ModelConfig& c, int64_t document_tokens) {
  const AttentionDims d = c.attention();
  const double C = double(c.hidden_size), q_width = double(d.query_heads * d.head_dim);
  const double kv_width = double(d.kv_heads * d.head_dim);
  return C * (double(d.query_parts()) * q_width + 2 * kv_width) + q_width * C + q_width * double(document_tokens);
}

double GatedAttention::output_multiply_adds(const ModelConfig& c) {
  return double(c.hidden_size) * double(c.attention().query_heads * c.attention().head_dim);
}

void GatedAttention::plan(SavedPlan& saved, GatedAttentionSaved& s, int64_t N, DType dtype) const {
  const int64_t Hq = dims_.query_heads, Hkv = dims_.kv_heads, Dh = dims_.head_dim;
  const DType wide = wide_dtype(dtype);
  saved.by_products("q_gate", s.projections.q_gate, {N, Hq, dims_.query_parts(), Dh}, dtype);
  saved.by_products("k_proj", s.projections.k, {N, Hkv, Dh}, dtype);
  saved.by_products("v", s.v, {N, Hkv, Dh}, dtype);
  saved.by_elements("q", s.inputs.q, {N, Hq, Dh}, dtype);
  saved.by_elements("k", s.inputs.k, {N, Hkv, Dh}, dtype);
  saved.by_elements("q_rstd", s.inputs.q_rstd, {N, Hq}, wide);
  saved.by_elements("k_rstd", s.inputs.k_rstd, {N, Hkv}, wide);
  saved.by_products("o", s.outputs.o, {N, Hq, Dh}, dtype);
  if (dims_.gated) saved.by_products("y", s.outputs.y, {N, Hq, Dh}, dtype);
  saved.by_products("lse", s.outputs.lse, {N, Hq}, wide);
  saved.planner().offer("attention/logit_max", s.outputs.score_max, NumberKind::kLargest);
  saved.planner().offer("attention/first_token_share", s.outputs.first_token_share, NumberKind::kTokenMean);
}

void GatedAttention::plan_cache(Planner& planner, GatedAttentionCache& cache, int64_t max_tokens, DType dtype) const {
  planner.add("k", cache.k, {max_tokens, dims_.kv_heads, dims_.head_dim}, dtype);
  planner.add("v", cache.v, {max_tokens, dims_.kv_heads, dims_.head_dim}, dtype);
}

void GatedAttention::make(Context& ctx, Remake what, const Tensor& x, const GatedAttentionParams& p,
                          const GatedAttentionSaved& s, const LayerPass& pass, GatedAttentionCache* cache) const {
  const bool all = what == Remake::kEverything;
  if (all) {
    linear_forward(ctx, flat(s.projections.q_gate), x, p.q_proj);
    linear_forward(ctx, flat(s.projections.k), x, p.k_proj);
    linear_forward(ctx, flat(s.v), x, p.v_proj);
  }
  AttentionTensors tensors = attention_tensors(s);
  attention_inputs_forward(ctx, s.inputs, s.projections, p.inputs, pass.segments, dims_);
  if (cache) {
    const int64_t begin = pass.segments.before(0), end = begin + x.dim(0);
    copy(ctx, cache->k.rows(begin, end), s.inputs.k);
    copy(ctx, cache->v.rows(begin, end), s.v);
    tensors.k = cache->k.rows(0, end);
    tensors.v = cache->v.rows(0, end);
  }
  if (!all) return;
  Scratch scratch(ctx);
  if (pass.context) gather_context(ctx, scratch, tensors, pass);
  attention_forward(ctx, attention_outputs(s), tensors, pass.segments);
}

void GatedAttention::gather_context(Context& ctx, Scratch& scratch, AttentionTensors& tensors,
                                    const LayerPass& pass) const {
  for (Tensor* keys : {&tensors.k, &tensors.v}) {
    const Tensor own = *keys;
    *keys = scratch.tensor({num_keys(pass.segments), own.dim(1), own.dim(2)}, own.dtype());
    gather_keys(ctx, *keys, own, *pass.context, pass.segments);
  }
}

void GatedAttention::forward(Context& ctx, Tensor out, const Tensor& x, const GatedAttentionParams& p,
                             GatedAttentionSaved& s, const LayerPass& pass, GatedAttentionCache* cache) const {
  make(ctx, Remake::kEverything, x, p, s, pass, cache);
  linear_forward(ctx, out, flat(attention_outputs(s).y), p.o_proj);
}

void GatedAttention::backward(Context& ctx, Tensor d_x, GatedAttentionParams& g, const Tensor& d_out, const Tensor& x,
                              const GatedAttentionParams& p, const GatedAttentionSaved& s,
                              const LayerPass& pass) const {
  if (const Remake again = remake_of(LayerPart::kMixer, pass.recompute); again != Remake::kNothing)
    make(ctx, again, x, p, s, pass, nullptr);
  Scratch scratch(ctx);
  auto like = [&](const Tensor& t) { return scratch.tensor(t.shape(), x.dtype()); };

  const AttentionOutputs outputs = attention_outputs(s);
  Tensor d_y = like(outputs.y);
  linear_backward_weight(ctx, g.o_proj, d_out, flat(outputs.y));
  linear_backward_input(ctx, flat(d_y), d_out, p.o_proj);

  AttentionProjections d_projections = {like(s.projections.q_gate), like(s.projections.k)};
  Tensor d_q = like(s.inputs.q), d_k = like(s.inputs.k), d_v = like(s.v);
  const Tensor d_gate = gated(s) ? d_projections.q_gate : Tensor();
  AttentionTensors tensors = attention_tensors(s);
  if (pass.context) {
    gather_context(ctx, scratch, tensors, pass);
    Tensor d_keys = like(tensors.k), d_values = like(tensors.v);
    attention_backward(ctx, {d_q, d_keys, d_values, d_gate}, d_y, tensors, outputs, pass.segments);
    return_key_gradients(ctx, d_k, d_keys, *pass.context, pass.segments);
    return_key_gradients(ctx, d_v, d_values, *pass.context, pass.segments);
  } else {
    attention_backward(ctx, {d_q, d_k, d_v, d_gate}, d_y, tensors, outputs, pass.segments);
  }
  attention_inputs_backward(ctx, d_projections, g.inputs, d_q, d_k, s.inputs, s.projections, p.inputs, pass.segments,
                            dims_);

  linear_backward_weight(ctx, g.q_proj, flat(d_projections.q_gate), x);
  linear_backward_weight(ctx, g.k_proj, flat(d_projections.k), x);
  linear_backward_weight(ctx, g.v_proj, flat(d_v), x);
  linear_backward_input(ctx, d_x, flat(d_projections.q_gate), p.q_proj);
  linear_backward_input(ctx, d_x, flat(d_projections.k), p.k_proj, Accumulate::kYes);
  linear_backward_input(ctx, d_x, flat(d_v), p.v_proj, Accumulate::kYes);
}

}  // namespace braid
