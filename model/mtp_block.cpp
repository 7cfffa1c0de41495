#include "model/mtp_block.h"

#include "kernels/core/copy.h"
#include "kernels/embedding.h"
#include "kernels/matmul.h"
#include "kernels/rms_norm.h"

namespace braid {

MtpBlock::MtpBlock(const ModelConfig& c, ExpertExchange& exchange)
    : eps_(c.rms_norm_eps), C_(c.hidden_size), layer_(c, MtpBlockParams::kLayerType, exchange) {}

double MtpBlock::multiply_adds(const ModelConfig& c, int64_t document_tokens) {
  return 2 * double(c.hidden_size) * double(c.hidden_size) +
         DecoderLayer::multiply_adds(c, MtpBlockParams::kLayerType, document_tokens);
}

void MtpBlock::plan(SavedPlan& saved, MtpBlockSaved& s, int64_t num_rows, int64_t N, DType dtype) const {
  saved.keep("embedding", s.embedding, {N, C_}, dtype);
  saved.keep("joined", s.inputs.joined, {N, 2 * C_}, dtype);
  saved.keep("embedding_rstd", s.inputs.embedding_rstd, {N}, wide_dtype(dtype));
  saved.keep("hidden_rstd", s.inputs.hidden_rstd, {N}, wide_dtype(dtype));
  saved.keep("x", s.x, {N, C_}, dtype);
  saved.keep("x_final", s.x_final, {N, C_}, dtype);
  saved.keep("rstd", s.rstd, {N}, wide_dtype(dtype));
  Planner::Scope scope(saved.planner(), "layers.0.");
  layer_.plan(saved, s.layer, num_rows, N, dtype);
}

Steps MtpBlock::forward(Context& ctx, Tensor out, const Tensor& hidden, const Tensor& next_tokens,
                        const Tensor& embed_table, const MtpBlockParams& p, MtpBlockSaved& s,
                        const LayerPass& pass) const {
  Scratch scratch(ctx);
  s.hidden = hidden;
  embedding_forward(ctx, s.embedding, next_tokens, embed_table);
  mtp_inputs_forward(ctx, s.inputs, s.embedding, hidden, p.inputs, eps_);
  linear_forward(ctx, s.x, s.inputs.joined, p.fc);
  Tensor delta = scratch.tensor(s.x.shape(), s.x.dtype());
  fill_zero(ctx, delta);
  co_yield layer_.forward(ctx, delta, s.x, p.layer, s.layer, pass);
  add_rms_norm_forward(ctx, out, s.x_final, s.rstd, s.layer.x_mid, delta, p.norm, eps_);
}

Steps MtpBlock::backward(Context& ctx, Tensor d_hidden, Tensor d_embedding, MtpBlockParams& g, const Tensor& d_out,
                         const MtpBlockParams& p, const MtpBlockSaved& s, const LayerPass& pass) const {
  Scratch scratch(ctx);
  Tensor d_stream = scratch.tensor(s.x.shape(), s.x.dtype());
  Tensor d_joined = scratch.tensor(s.inputs.joined.shape(), s.x.dtype());
  rms_norm_backward(ctx, d_stream, g.norm, d_out, s.x_final, p.norm, s.rstd);
  co_yield layer_.backward(ctx, d_stream, g.layer, p.layer, s.layer, pass);
  co_yield Steps::Pause();
  linear_backward_weight(ctx, g.fc, d_stream, s.inputs.joined);
  linear_backward_input(ctx, d_joined, d_stream, p.fc);
  mtp_inputs_backward(ctx, d_embedding, d_hidden, g.inputs, d_joined, s.embedding, s.hidden, s.inputs, p.inputs);
}

}  // namespace braid
