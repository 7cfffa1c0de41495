#include "model/model.h"

#include <algorithm>
#include <numeric>

#include "kernels/core/copy.h"
#include "kernels/embedding.h"
#include "kernels/lm_head_loss.h"
#include "kernels/rms_norm.h"

namespace braid {

Model::Model(const ModelConfig& config, const MtpConfig& mtp, const RowsShape& shape, DType dtype,
             Communicator& expert_group, double max_rows_factor, const Recomputation& recompute,
             const ContextGroup* context)
    : config_(config),
      num_rows_(shape.num_rows * (context ? context->share().parts_held() : 1)),
      row_tokens_(shape.row_tokens / (context ? context->share().num_parts() : 1)),
      dtype_(dtype),
      recompute_(recompute_of_layers(config, mtp, recompute)),
      context_(context),
      exchange_(expert_group, config.num_experts, config.num_experts_per_tok, num_tokens(), max_rows_factor),
      weights_(config, mtp),
      gradients_(config, mtp),
      mtp_(mtp.on() ? std::make_unique<MtpBlock>(config, exchange_) : nullptr),
      saved_(config.num_hidden_layers) {
  for (int64_t i = 0; i < config.num_hidden_layers; ++i) layers_.emplace_back(config, config.layer_type(i), exchange_);
}

void Model::plan_activations(Planner& planner) {
  const int64_t N = num_tokens(), C = config_.hidden_size;
  planner.add("tokens", tokens_, {N}, DType::kI64);
  planner.add("targets", targets_, {N}, DType::kI64);
  Segments::plan_tables(planner, tables_, N);
  const auto saved_plan = [&](size_t layer) { return SavedPlan(planner, recompute_[layer], context_ ? num_rows_ : 0); };
  for (size_t i = 0; i < layers_.size(); ++i) {
    Planner::Scope scope(planner, "layers." + std::to_string(i) + ".");
    SavedPlan saved = saved_plan(i);
    layers_[i].plan(saved, saved_[i], num_rows_, N, dtype_);
  }
  planner.add("x_final", x_final_, {N, C}, dtype_);
  planner.add("rstd", rstd_, {N}, wide_dtype(dtype_));
  planner.add("hidden", hidden_, {N, C}, dtype_);
  planner.add("loss_sums", loss_sums_, {2 * num_rows_}, DType::kF64);
  if (mtp_) {
    Planner::Scope scope(planner, "mtp.");
    planner.add("next_tokens", next_tokens_, {N}, DType::kI64);
    planner.add("next_targets", next_targets_, {N}, DType::kI64);
    Segments::plan_tables(planner, mtp_tables_, N);
    planner.add("hidden", mtp_hidden_, {N, C}, dtype_);
    SavedPlan saved = saved_plan(layers_.size());
    mtp_->plan(saved, mtp_saved_, num_rows_, N, dtype_);
  }
}

void Model::set_inputs(Context& ctx, const Batch& batch) {
  copy(ctx, tokens_, view_of(batch.tokens));
  copy(ctx, targets_, view_of(batch.targets));
  segments_ = batch.segments;
  if (ctx.on_cuda()) segments_.upload(ctx, tables_);
  if (!mtp_) return;
  copy(ctx, next_tokens_, view_of(batch.mtp.tokens));
  copy(ctx, next_targets_, view_of(batch.mtp.targets));
  mtp_segments_ = batch.mtp.segments;
  if (ctx.on_cuda()) mtp_segments_.upload(ctx, mtp_tables_);
}

// From the embedding to the hidden states behind the final norm.
Steps Model::forward_layers(Context& ctx, ModelCache* cache) {
  Scratch scratch(ctx);
  Tensor delta = scratch.tensor(hidden_.shape(), dtype_), embedding = scratch.tensor(hidden_.shape(), dtype_);
  fill_zero(ctx, delta);

  before_layer_(ctx, -1);
  embedding_forward(ctx, embedding, tokens_, weights_.embed_tokens);
  const Tensor* x = &embedding;
  for (size_t i = 0; i < layers_.size(); ++i) {
    LayerPass pass{.segments = segments_, .context = context_};
    if (cache) pass.cache = &cache->layers[i];
    before_layer_(ctx, static_cast<int64_t>(i));
    co_yield layers_[i].forward(ctx, delta, *x, weights_.layers[i], saved_[i], pass);
    x = &saved_[i].x_mid;
    co_yield Steps::Pause();
  }
  before_layer_(ctx, std::ssize(layers_));
  add_rms_norm_forward(ctx, hidden_, x_final_, rstd_, *x, delta, weights_.norm, config_.rms_norm_eps);
}

void Model::forward(Context& ctx, const Batch& batch) {
  do forward_steps(ctx, batch).run();
  while (must_repeat(ctx));
}

Steps Model::forward_steps(Context& ctx, const Batch& batch) {
  set_inputs(ctx, batch);
  co_yield forward_layers(ctx, nullptr);
  if (!mtp_) co_return;
  const LayerPass pass = {.segments = mtp_segments_, .context = context_};
  co_yield mtp_->forward(ctx, mtp_hidden_, hidden_, next_tokens_, weights_.embed_tokens, weights_.mtp[0], mtp_saved_,
                         pass);
}

void Model::forward(Context& ctx, const Batch& batch, ModelCache& cache) {
  check<ShapeError>(batch.num_rows == 1 && batch.segments.num_documents() == 1,
                    "the next tokens of a text: expected one row with one document, got ", batch.num_rows, " with ",
                    batch.segments.num_documents());
  check<ShapeError>(cache.num_tokens + num_tokens() <= cache.max_tokens,
                    "the next tokens of a text: ", cache.num_tokens, " and ", num_tokens(),
                    " more do not fit a cache for ", cache.max_tokens);
  set_inputs(ctx, batch);
  segments_.tokens_before = {cache.num_tokens};
  exchange_.wait_for_counts();  // what the cache holds cannot be done again
  forward_layers(ctx, &cache).run();
  cache.num_tokens += num_tokens();
}

void Model::plan_cache(Planner& planner, ModelCache& cache, int64_t max_tokens) const {
  cache = {std::vector<MixerCache>(layers_.size()), 0, max_tokens};
  for (size_t i = 0; i < layers_.size(); ++i) {
    Planner::Scope scope(planner, "layers." + std::to_string(i) + ".");
    layers_[i].plan_cache(planner, cache.layers[i], max_tokens, dtype_);
  }
}

LossSums Model::read_losses(Context& ctx) {
  std::vector<double> of_rows(2 * num_rows_);
  copy(ctx, Tensor::of(of_rows.data(), loss_sums_.shape()), loss_sums_);
  const auto mtp = of_rows.begin() + num_rows_;
  LossSums sums;
  sums.lm = std::accumulate(of_rows.begin(), mtp, 0.0);
  if (mtp_) sums.mtp = std::accumulate(mtp, of_rows.end(), 0.0);
  of_rows.resize(num_rows_);
  sums.lm_of_rows = std::move(of_rows);
  return sums;
}

LossSums Model::losses(Context& ctx) {
  lm_head_loss_forward(ctx, lm_sums(), hidden_, weights_.lm_head, targets_);
  if (mtp_) lm_head_loss_forward(ctx, mtp_sums(), mtp_hidden_, weights_.lm_head, next_targets_);
  return read_losses(ctx);
}

LossSums Model::losses_and_backward(Context& ctx, const LossScales& scales, const BalanceGradients& balance,
                                    const std::function<void(int64_t layer)>& left, Accumulate expert_gradients) {
  backward_steps(ctx, scales, balance, left, expert_gradients).run();
  return read_losses(ctx);
}

Steps Model::backward_steps(Context& ctx, LossScales scales, const BalanceGradients& balance,
                            std::function<void(int64_t layer)> left, Accumulate expert_gradients) {
  Scratch scratch(ctx);
  Tensor d_hidden = scratch.tensor(hidden_.shape(), dtype_);
  lm_head_loss_forward_backward(ctx, lm_sums(), d_hidden, gradients_.lm_head, hidden_, weights_.lm_head, targets_,
                                scales.lm);

  Tensor d_next_embedding;
  if (mtp_) {
    const int64_t layer = num_moe_layers() - 1;
    d_next_embedding = scratch.tensor(hidden_.shape(), dtype_);
    Tensor d_mtp_hidden = scratch.tensor(hidden_.shape(), dtype_);
    lm_head_loss_forward_backward(ctx, mtp_sums(), d_mtp_hidden, gradients_.lm_head, mtp_hidden_, weights_.lm_head,
                                  next_targets_, scales.mtp);
    const LayerPass pass = {mtp_segments_, balance.layers[layer], expert_gradients, recompute_.back(), context_};
    co_yield mtp_->backward(ctx, d_hidden, d_next_embedding, gradients_.mtp[0], d_mtp_hidden, weights_.mtp[0],
                            mtp_saved_, pass);
  }

  Tensor d_stream = scratch.tensor(hidden_.shape(), dtype_);
  rms_norm_backward(ctx, d_stream, gradients_.norm, d_hidden, x_final_, weights_.norm, rstd_);
  const auto num_layers = static_cast<int64_t>(layers_.size());
  if (left) left(num_layers);
  for (int64_t i = num_layers - 1; i >= 0; --i) {
    const LayerPass pass = {segments_, balance.layers[i], expert_gradients, recompute_[i], context_};
    co_yield layers_[i].backward(ctx, d_stream, gradients_.layers[i], weights_.layers[i], saved_[i], pass);
    if (left) left(i);
    co_yield Steps::Pause();
  }
  // Last, both: then their order is the same whether micro-batches take turns or not.
  if (mtp_) embedding_backward(ctx, gradients_.embed_tokens, d_next_embedding, next_tokens_);
  embedding_backward(ctx, gradients_.embed_tokens, d_stream, tokens_);
  if (left) left(-1);
}

int64_t Model::overflow_rounds() const {
  auto beyond_first = [](const MoeSaved& moe) { return std::max<int64_t>(0, std::ssize(moe.route.rounds) - 1); };
  int64_t rounds = mtp_ ? beyond_first(mtp_saved_.layer.moe) : 0;
  for (const auto& saved : saved_) rounds += beyond_first(saved.moe);
  return rounds;
}

std::vector<const RouterOutputs*> Model::routers() const {
  std::vector<const RouterOutputs*> routers;
  for (const auto& saved : saved_) routers.push_back(&saved.moe.router);
  if (mtp_) routers.push_back(&mtp_saved_.layer.moe.router);
  return routers;
}

}  // namespace braid
