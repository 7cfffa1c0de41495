#include "model/decoder_layer.h"

#include "kernels/largest_magnitude.h"
#include "kernels/rms_norm.h"
#include "kernels/sum_squares.h"

namespace braid {

DecoderLayer::DecoderLayer(const ModelConfig& c, LayerType type, ExpertExchange& exchange)
    : eps_(c.rms_norm_eps), C_(c.hidden_size), mixer_(c, type), moe_(c, exchange) {}

double DecoderLayer::multiply_adds_again(const ModelConfig& c, LayerType type, int64_t document_tokens,
                                         Recompute recompute) {
  double sum = 0;
  if (remake_of(LayerPart::kMixer, recompute) == Remake::kEverything)
    sum += Mixer::multiply_adds(c, type, document_tokens) - Mixer::output_multiply_adds(c, type);
  if (remake_of(LayerPart::kMoe, recompute) == Remake::kEverything)
    sum += MoeLayer::multiply_adds(c) - MoeLayer::output_multiply_adds(c);
  return sum;
}

void DecoderLayer::plan(SavedPlan& saved, DecoderLayerSaved& s, int64_t num_rows, int64_t N, DType dtype) const {
  saved.keep("x", s.x, {N, C_}, dtype);
  saved.keep("x_mid", s.x_mid, {N, C_}, dtype);
  saved.planner().offer("hidden/rms", s.x_squares, NumberKind::kRootMeanSquare, N * C_);
  saved.planner().offer("hidden/max", s.x_max, NumberKind::kLargest);
  saved.begin(LayerPart::kMixer);
  saved.by_elements("mixer_in", s.mixer_in, {N, C_}, dtype);
  saved.by_elements("mixer_rstd", s.mixer_rstd, {N}, wide_dtype(dtype));
  mixer_.plan(saved, s.mixer, N, dtype);
  saved.begin(LayerPart::kMoe);
  saved.by_elements("moe_in", s.moe_in, {N, C_}, dtype);
  saved.by_elements("moe_rstd", s.moe_rstd, {N}, wide_dtype(dtype));
  Planner::Scope scope(saved.planner(), "mlp.");
  moe_.plan(saved, s.moe, num_rows, N, dtype);
}

Steps DecoderLayer::forward(Context& ctx, Tensor delta, const Tensor& x, const DecoderLayerParams& p,
                            DecoderLayerSaved& s, const LayerPass& pass) const {
  add_rms_norm_forward(ctx, s.mixer_in, s.x, s.mixer_rstd, x, delta, p.input_norm, eps_);
  if (s.x_squares.defined()) sum_squares(ctx, s.x_squares, s.x);
  if (s.x_max.defined()) largest_magnitude(ctx, s.x_max, s.x);
  mixer_.forward(ctx, delta, s.mixer_in, p.mixer, s.mixer, pass);
  add_rms_norm_forward(ctx, s.moe_in, s.x_mid, s.moe_rstd, s.x, delta, p.post_attention_norm, eps_);
  co_yield Steps::Pause();
  moe_.forward(ctx, delta, s.moe_in, p.moe, s.moe, pass);
}

Steps DecoderLayer::backward(Context& ctx, Tensor d_stream, DecoderLayerParams& g, const DecoderLayerParams& p,
                             const DecoderLayerSaved& s, const LayerPass& pass) const {
  Scratch scratch(ctx);
  Tensor d_normed = scratch.tensor(s.x.shape(), s.x.dtype());
  if (remake_of(LayerPart::kMoe, pass.recompute) != Remake::kNothing)
    rms_norm_forward(ctx, s.moe_in, s.moe_rstd, s.x_mid, p.post_attention_norm, eps_);
  moe_.backward(ctx, d_normed, g.moe, d_stream, s.moe_in, p.moe, s.moe, pass);
  add_rms_norm_backward(ctx, d_stream, g.post_attention_norm, d_normed, s.x_mid, p.post_attention_norm, s.moe_rstd);
  co_yield Steps::Pause();
  if (remake_of(LayerPart::kMixer, pass.recompute) != Remake::kNothing)
    rms_norm_forward(ctx, s.mixer_in, s.mixer_rstd, s.x, p.input_norm, eps_);
  mixer_.backward(ctx, d_normed, g.mixer, d_stream, s.mixer_in, p.mixer, s.mixer, pass);
  add_rms_norm_backward(ctx, d_stream, g.input_norm, d_normed, s.x, p.input_norm, s.mixer_rstd);
}

}  // namespace braid
