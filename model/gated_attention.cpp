#include "model/gated_attention.h"

#include <numeric>

#include "kernels/core/copy.h"
#include "kernels/matmul.h"
#include "parallel/rounded_reduction.h"

namespace braid {
namespace {

// (N, heads, …) as the (N, columns) matrix that a projection reads or writes.
Tensor flat(const Tensor& t) { return t.view({t.dim(0), t.dim(0) == 0 ? 0 : t.numel() / t.dim(0)}); }

// The half of attention_inputs that makes keys, and the half that makes queries: the other has no heads.
struct Half {
  bool queries;

  Tensor take(const Tensor& t, bool of_queries) const {
    if (of_queries == queries) return t;
    Shape none = {t.dim(0), 0};
    for (int axis = 2; axis < t.rank(); ++axis) none.append(t.dim(axis));
    return Tensor(nullptr, t.dtype(), none, t.device());
  }
  AttentionProjections of(const AttentionProjections& x) const { return {take(x.q_gate, true), take(x.k, false)}; }
  AttentionInputs of(const AttentionInputs& x) const {
    return {take(x.q, true), take(x.k, false), take(x.q_rstd, true), take(x.k_rstd, false)};
  }
  AttentionDims of(AttentionDims dims) const {
    (queries ? dims.kv_heads : dims.query_heads) = 0;
    return dims;
  }
};
constexpr Half kKeys = {false}, kQueries = {true};

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

// own (N, Hkv, Dh) of all ranks, which `all` has room for, and of them keys (M, Hkv, Dh) as attention wants them.
void gather_keys(Context& ctx, Tensor keys, Tensor all, const Tensor& own, const ContextGroup& context,
                 const Segments& segments) {
  context.ranks().all_gather(ctx, all, own);
  for_each_piece(context, segments, [&](int64_t key, int64_t token, int64_t count) {
    copy(ctx, keys.rows(key, key + count), all.rows(token, token + count));
  });
}

// d_own (N, Hkv, Dh) = the sum of what all ranks have in d_keys (M, Hkv, Dh), in their order; `all` as above
void return_key_gradients(Context& ctx, Tensor d_own, Tensor all, const Tensor& d_keys, const ContextGroup& context,
                          const Segments& segments) {
  fill_zero(ctx, all);
  for_each_piece(context, segments, [&](int64_t key, int64_t token, int64_t count) {
    add(ctx, all.rows(token, token + count), d_keys.rows(key, key + count));
  });
  reduce_scatter_rounded(ctx, context.ranks(), d_own, all);
}

// Keys and values of a text so far, with those of its next tokens.
void add_to_cache(Context& ctx, AttentionTensors& tensors, const GatedAttentionCache& cache, const Segments& segments) {
  const int64_t begin = segments.before(0), end = begin + tensors.k.dim(0);
  copy(ctx, cache.k.rows(begin, end), tensors.k);
  copy(ctx, cache.v.rows(begin, end), tensors.v);
  tensors.k = cache.k.rows(0, end);
  tensors.v = cache.v.rows(0, end);
}

// Room for the keys, or values, of all ranks; one serves for both, as they travel one behind the other.
Tensor room_for_all(Scratch& scratch, const Tensor& own, const ContextGroup& context) {
  return scratch.tensor({context.share().count * own.dim(0), own.dim(1), own.dim(2)}, own.dtype());
}

// Keys and values of this rank become those of the documents that reach into its parts, which are there after
// wait() of the group.
void start_gather_keys(Context& ctx, Scratch& scratch, AttentionTensors& tensors, const LayerPass& pass) {
  const Tensor all = room_for_all(scratch, tensors.k, *pass.context);
  for (Tensor* keys : {&tensors.k, &tensors.v}) {
    const Tensor own = *keys;
    *keys = scratch.tensor({num_keys(pass.segments), own.dim(1), own.dim(2)}, own.dtype());
    gather_keys(pass.context->beside(ctx), *keys, all, own, *pass.context, pass.segments);
  }
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

void GatedAttention::make_keys(Context& ctx, Remake what, const Tensor& x, const GatedAttentionParams& p,
                               const GatedAttentionSaved& s, const LayerPass& pass) const {
  if (what == Remake::kEverything) {
    linear_forward(ctx, flat(s.projections.k), x, p.k_proj);
    linear_forward(ctx, flat(s.v), x, p.v_proj);
  }
  if (what != Remake::kNothing)
    attention_inputs_forward(ctx, kKeys.of(s.inputs), kKeys.of(s.projections), p.inputs, pass.segments,
                             kKeys.of(dims_));
}

void GatedAttention::make_queries(Context& ctx, Remake what, const Tensor& x, const GatedAttentionParams& p,
                                  const GatedAttentionSaved& s, const LayerPass& pass) const {
  if (what == Remake::kEverything) linear_forward(ctx, flat(s.projections.q_gate), x, p.q_proj);
  if (what != Remake::kNothing)
    attention_inputs_forward(ctx, kQueries.of(s.inputs), kQueries.of(s.projections), p.inputs, pass.segments,
                             kQueries.of(dims_));
}

// Keys and values first: where ranks share rows they travel beside what queries take.
void GatedAttention::forward(Context& ctx, Tensor out, const Tensor& x, const GatedAttentionParams& p,
                             GatedAttentionSaved& s, const LayerPass& pass, GatedAttentionCache* cache) const {
  Scratch scratch(ctx);
  AttentionTensors tensors = attention_tensors(s);
  make_keys(ctx, Remake::kEverything, x, p, s, pass);
  if (cache) add_to_cache(ctx, tensors, *cache, pass.segments);
  if (pass.context) start_gather_keys(ctx, scratch, tensors, pass);
  make_queries(ctx, Remake::kEverything, x, p, s, pass);
  if (pass.context) pass.context->wait(ctx);
  attention_forward(ctx, attention_outputs(s), tensors, pass.segments);
  linear_forward(ctx, out, flat(attention_outputs(s).y), p.o_proj);
}

void GatedAttention::backward(Context& ctx, Tensor d_x, GatedAttentionParams& g, const Tensor& d_out, const Tensor& x,
                              const GatedAttentionParams& p, const GatedAttentionSaved& s,
                              const LayerPass& pass) const {
  Scratch scratch(ctx);
  auto like = [&](const Tensor& t) { return scratch.tensor(t.shape(), x.dtype()); };
  const AttentionOutputs outputs = attention_outputs(s);
  AttentionTensors tensors = attention_tensors(s);
  const Remake again = remake_of(LayerPart::kMixer, pass.recompute);
  make_keys(ctx, again, x, p, s, pass);
  if (pass.context) start_gather_keys(ctx, scratch, tensors, pass);
  make_queries(ctx, again, x, p, s, pass);
  if (again == Remake::kEverything) {
    if (pass.context) pass.context->wait(ctx);
    attention_forward(ctx, outputs, tensors, pass.segments);
  }

  Tensor d_y = like(outputs.y);
  linear_backward_weight(ctx, g.o_proj, d_out, flat(outputs.y));
  linear_backward_input(ctx, flat(d_y), d_out, p.o_proj);

  AttentionProjections d_projections = {like(s.projections.q_gate), like(s.projections.k)};
  Tensor d_q = like(s.inputs.q), d_k = like(s.inputs.k), d_v = like(s.v);
  AttentionGradients d_tensors = {d_q, d_k, d_v, gated(s) ? d_projections.q_gate : Tensor()};
  if (pass.context) {
    d_tensors.k = like(tensors.k), d_tensors.v = like(tensors.v);
    pass.context->wait(ctx);
  }
  attention_backward(ctx, d_tensors, d_y, tensors, outputs, pass.segments);
  if (pass.context) {
    const ContextGroup& context = *pass.context;
    Tensor all = room_for_all(scratch, d_k, context);
    return_key_gradients(context.beside(ctx), d_k, all, d_tensors.k, context, pass.segments);
    return_key_gradients(context.beside(ctx), d_v, all, d_tensors.v, context, pass.segments);
  }
  // The gradients of keys and values travel beside what those of queries take.
  auto inputs_backward = [&](const Half& half) {
    attention_inputs_backward(ctx, half.of(d_projections), g.inputs, half.take(d_q, true), half.take(d_k, false),
                              half.of(s.inputs), half.of(s.projections), p.inputs, pass.segments, half.of(dims_));
  };
  inputs_backward(kQueries);
  linear_backward_weight(ctx, g.q_proj, flat(d_projections.q_gate), x);
  linear_backward_input(ctx, d_x, flat(d_projections.q_gate), p.q_proj);

  if (pass.context) pass.context->wait(ctx);
  inputs_backward(kKeys);
  linear_backward_weight(ctx, g.k_proj, flat(d_projections.k), x);
  linear_backward_weight(ctx, g.v_proj, flat(d_v), x);
  linear_backward_input(ctx, d_x, flat(d_projections.k), p.k_proj, Accumulate::kYes);
  linear_backward_input(ctx, d_x, flat(d_v), p.v_proj, Accumulate::kYes);
}

}  // namespace braid
