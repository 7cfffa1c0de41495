#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "kernels/core/batch.h"
#include "model/balance_loss.h"
#include "model/layer_numbers.h"
#include "model/parameter_layout.h"
#include "model/recomputation.h"
#include "model/steps.h"

namespace braid {

// Sums of cross entropy over the targets of a micro-batch, not yet divided by their number.
struct LossSums {
  double lm = 0, mtp = 0;
  std::vector<double> lm_of_rows;  // (B); lm is their sum, in their order
};
// d(total loss) / d(sum): 1 / targets of the global batch, times the loss weight.
struct LossScales {
  double lm = 0, mtp = 0;
};

// What a text so far leaves for its next tokens, layer by layer.
struct ModelCache {
  std::vector<MixerCache> layers;
  int64_t num_tokens = 0, max_tokens = 0;
};

struct RowsShape {
  int64_t num_rows, row_tokens;  // B, T
};

// Qwen3-Next: embedding, decoder layers, final norm, head; optionally an MTP block that shares embedding and head.
// Holds what a micro-batch of a fixed shape saves between forward and backward; weights and gradients are bound to it.
class Model {
 public:
  // shape: of every micro-batch. expert_group: ranks that share the experts. recompute: what a backward makes again; a
  // model for forward alone takes least memory with kLayer. context: ranks that share every row; the batches of this
  // rank are then its shares of them.
  Model(const ModelConfig& config, const MtpConfig& mtp, const RowsShape& shape, DType dtype,
        Communicator& expert_group, double max_rows_factor, const Recomputation& recompute = {},
        const ContextGroup* context = nullptr);

  const ModelConfig& config() const { return config_; }
  int64_t num_moe_layers() const { return static_cast<int64_t>(layers_.size()) + (mtp_ ? 1 : 0); }
  bool has_mtp() const { return mtp_ != nullptr; }
  int64_t num_rows() const { return num_rows_; }  // of a batch of this rank
  int64_t num_tokens() const { return num_rows_ * row_tokens_; }

  // Weights and gradients live in flat buffers that the caller owns; see ParameterLayout.
  ModelParams& weights() { return weights_; }
  ModelParams& gradients() { return gradients_; }

  // Called before a forward of micro-batches reads the weights of a layer (see layer_of in parameter_layout.h), with
  // the context that will: their update may still be under way beside it.
  using BeforeLayer = std::function<void(Context& ctx, int64_t layer)>;
  void wait_before_layers(BeforeLayer wait) { before_layer_ = std::move(wait); }

  // What layers tell about a step. `planner` is the one that plan_activations was given.
  // Errors: ConfigError naming what no layer offers.
  void want_numbers(const std::vector<std::string>& names, Planner& planner) {
    numbers_ = LayerNumbers(names);
    numbers_.plan(planner);
  }
  LayerNumbers& numbers() { return numbers_; }

  // What one micro-batch saves. Must be committed to an arena before the first forward.
  void plan_activations(Planner& planner);

  // Hidden states behind the final norm (and the MTP block's), routers and everything backward needs. Copies the batch,
  // which is complete.
  void forward(Context& ctx, const Batch& batch);
  // The same in steps, beside which others may be computed: see DecoderLayer. Behind the last one asks whether it must
  // be done again, see rows_were_cut of the exchange, which every member of the expert group must ask.
  Steps forward_steps(Context& ctx, const Batch& batch);
  bool must_repeat(Context& ctx) { return exchange_.rows_were_cut(ctx); }
  // The same for the next tokens of a text, one row with one document: the main model alone, which reads and brings up
  // to date what `cache` holds of the tokens before. Models of any shape may go on with one cache.   Errors:
  // ShapeError.
  void forward(Context& ctx, const Batch& batch, ModelCache& cache);
  // Room for a text of max_tokens; zeroed memory is a text that has not begun.
  void plan_cache(Planner& planner, ModelCache& cache, int64_t max_tokens) const;
  // Sums of the losses of the last forward.
  LossSums losses(Context& ctx);
  // The same, and all gradients of  scales.lm * lm + scales.mtp * mtp + balance and z losses;  gradients +=
  // `left` is called with the number of every layer that backward has left, from the number of layers (for what lies
  // behind them) down to -1 (the embedding): see layer_of in parameter_layout.h. With `expert_gradients` kNo those of
  // the experts' weights, by far the most, are overwritten and need not be zero before.
  LossSums losses_and_backward(Context& ctx, const LossScales& scales, const BalanceGradients& balance,
                               const std::function<void(int64_t layer)>& left = {},
                               Accumulate expert_gradients = Accumulate::kYes);
  // The same in steps, and behind the last, read_losses.
  Steps backward_steps(Context& ctx, LossScales scales, const BalanceGradients& balance,
                       std::function<void(int64_t layer)> left, Accumulate expert_gradients);
  LossSums read_losses(Context& ctx);

  // Of the memory that its exchange of rows took beside activations and scratch; see ExpertExchange.
  int64_t window_bytes() const { return exchange_.window_bytes(); }

  // Router outputs of the last forward, one per MoE layer, the MTP block's last.
  std::vector<const RouterOutputs*> routers() const;
  // Rounds beyond the first that the experts of this rank took in the last forward, of all layers.
  int64_t overflow_rounds() const;
  // (N, C) behind the final norm of the last forward.
  const Tensor& hidden() const { return hidden_; }
  // (N, C) behind the MTP block's norm of the last forward.
  const Tensor& mtp_hidden() const { return mtp_hidden_; }

 private:
  Steps forward_layers(Context& ctx, ModelCache* cache);
  void set_inputs(Context& ctx, const Batch& batch);
  Tensor lm_sums() const { return loss_sums_.rows(0, num_rows_); }
  Tensor mtp_sums() const { return loss_sums_.rows(num_rows_, 2 * num_rows_); }

  ModelConfig config_;
  int64_t num_rows_, row_tokens_;
  DType dtype_;
  std::vector<Recompute> recompute_;  // of every layer, the MTP block's last
  const ContextGroup* context_;
  ExpertExchange exchange_;
  ModelParams weights_, gradients_;
  BeforeLayer before_layer_ = [](Context&, int64_t) {};
  std::vector<DecoderLayer> layers_;
  std::unique_ptr<MtpBlock> mtp_;

  LayerNumbers numbers_;
  std::vector<DecoderLayerSaved> saved_;
  MtpBlockSaved mtp_saved_;
  // The micro-batch, where the model computes.
  Tensor tokens_, targets_, next_tokens_, next_targets_;  // (N) I64
  Segments segments_, mtp_segments_;
  Segments::Tables tables_, mtp_tables_;

  Tensor x_final_, rstd_, hidden_;  // (N, C), (N), (N, C)
  Tensor mtp_hidden_;               // (N, C)
  Tensor loss_sums_;                // (2 B) F64: lm of every row, then mtp
};

}  // namespace braid
