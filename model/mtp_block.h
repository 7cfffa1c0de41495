#pragma once

#include "kernels/mtp_inputs.h"
#include "model/decoder_layer.h"

namespace braid {

struct MtpBlockParams {
  Tensor fc;               // (C, 2C)  columns: embedding, then hidden
  MtpInputWeights inputs;  // pre_fc_norm_embedding, pre_fc_norm_hidden (C)
  static constexpr LayerType kLayerType = LayerType::kFullAttention;
  DecoderLayerParams layer{kLayerType};
  Tensor norm;  // (C)
  template <class Visit>
  void visit(const ModelConfig& c, Visit&& tensor) {
    const int64_t C = c.hidden_size;
    tensor("fc.weight", fc, {C, 2 * C}, Owner::kEveryRank, Init::kNormal, Decay::kYes);
    tensor("pre_fc_norm_embedding.weight", inputs.embedding_norm, {C}, Owner::kEveryRank, Init::kZero, Decay::kNorm);
    tensor("pre_fc_norm_hidden.weight", inputs.hidden_norm, {C}, Owner::kEveryRank, Init::kZero, Decay::kNorm);
    layer.visit(c, with_prefix("layers.0.", tensor));
    tensor("norm.weight", norm, {C}, Owner::kEveryRank, Init::kZero, Decay::kNorm);
  }
};

struct MtpBlockSaved {
  Tensor hidden;     // (N, C)  what forward read: a view, not a copy
  Tensor embedding;  // (N, C)  of the next token
  MtpInputs inputs;
  Tensor x;  // (N, C)  into the layer
  DecoderLayerSaved layer;
  Tensor x_final;  // (N, C)  residual stream behind the layer
  Tensor rstd;     // (N)
};

// Multi-token prediction block. Position t sees its hidden state and token t + 1, and predicts token t + 2:
//   x = fc [norm(embed(token_{t+1})) | norm(hidden_t)];   out = norm(x + layer(x))
// The head is the main model's.   Source: Qwen3NextMultiTokenPredictor in vLLM; arXiv 2412.19437 for the idea.
class MtpBlock {
 public:
  MtpBlock(const ModelConfig& c, ExpertExchange& exchange);
  // Of the forward pass of one token in documents of `document_tokens`, without the head.
  static double multiply_adds(const ModelConfig& c, int64_t document_tokens);
  void plan(SavedPlan& saved, MtpBlockSaved& s, int64_t num_rows, int64_t N, DType dtype) const;
  //   out, hidden (N, C);  next_tokens (N) I64;  embed_table (V, C);  tokens and segments as in MtpView
  // Both passes pause where those of its layer do.
  Steps forward(Context& ctx, Tensor out, const Tensor& hidden, const Tensor& next_tokens, const Tensor& embed_table,
                const MtpBlockParams& p, MtpBlockSaved& s, const LayerPass& pass) const;
  //   d_hidden, g +=;  d_embedding (N, C) of the next tokens, overwritten
  Steps backward(Context& ctx, Tensor d_hidden, Tensor d_embedding, MtpBlockParams& g, const Tensor& d_out,
                 const MtpBlockParams& p, const MtpBlockSaved& s, const LayerPass& pass) const;

 private:
  double eps_;
  int64_t C_;
  DecoderLayer layer_;
};

}  // namespace braid
