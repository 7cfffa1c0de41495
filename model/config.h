#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/attention_inputs.h"
#include "kernels/core/enum_names.h"
#include "kernels/gdn_inputs.h"

namespace braid {

enum class LayerType { kLinearAttention, kFullAttention };
template <>
struct EnumNames<LayerType> {
  static constexpr std::array kNames = {"linear_attention", "full_attention"};
};

// Shape of the model; every key is the key of transformers' config.json for Qwen3-Next.
struct ModelConfig {
  int64_t vocab_size = 151936;
  int64_t hidden_size = 2048;
  int64_t num_hidden_layers = 48;
  int64_t num_attention_heads = 16;
  int64_t num_key_value_heads = 2;
  int64_t head_dim = 256;
  double partial_rotary_factor = 0.25;
  double rope_theta = 1e7;
  RopeParameters rope_parameters;
  int64_t max_position_embeddings = 262144;
  double rms_norm_eps = 1e-6;
  double initializer_range = 0.02;
  std::string hidden_act = "silu";
  bool attention_bias = false;
  double attention_dropout = 0;
  bool attn_output_gate = true;
  bool tie_word_embeddings = false;
  int64_t linear_num_key_heads = 16;
  int64_t linear_num_value_heads = 32;
  int64_t linear_key_head_dim = 128;
  int64_t linear_value_head_dim = 128;
  int64_t linear_conv_kernel_dim = 4;
  int64_t num_experts = 512;
  int64_t num_experts_per_tok = 10;
  int64_t moe_intermediate_size = 512;
  int64_t shared_expert_intermediate_size = 512;
  bool norm_topk_prob = true;
  int64_t full_attention_interval = 4;
  std::vector<LayerType> layer_types;  // empty: every full_attention_interval-th layer is full attention

  template <class Visit>
  void visit(Visit&& key) {
    key("vocab_size", vocab_size, "rows of the embedding and of the head");
    key("hidden_size", hidden_size, "width of the residual stream");
    key("num_hidden_layers", num_hidden_layers, "layers, the MTP layer not counted");
    key("num_attention_heads", num_attention_heads, "query heads of full attention");
    key("num_key_value_heads", num_key_value_heads, "key/value heads of full attention");
    key("head_dim", head_dim, "width of a full-attention head");
    key("partial_rotary_factor", partial_rotary_factor, "share of head_dim that rotates");
    key("rope_theta", rope_theta, "base of the rotary frequencies");
    key("rope_parameters", rope_parameters, "rotary positions over longer rows than the model was first trained on");
    key("max_position_embeddings", max_position_embeddings, "longest sequence the model is meant for");
    key("rms_norm_eps", rms_norm_eps, "epsilon of every RMS norm");
    key("initializer_range", initializer_range, "standard deviation of initial weights");
    key("hidden_act", hidden_act, "activation of the experts; only silu");
    key("attention_bias", attention_bias, "only false");
    key("attention_dropout", attention_dropout, "only 0");
    key("attn_output_gate", attn_output_gate,
        "full attention multiplies its output by sigmoid(gate); false for studies");
    key("tie_word_embeddings", tie_word_embeddings, "only false");
    key("linear_num_key_heads", linear_num_key_heads, "key heads of Gated DeltaNet");
    key("linear_num_value_heads", linear_num_value_heads, "value heads of Gated DeltaNet");
    key("linear_key_head_dim", linear_key_head_dim, "width of a Gated DeltaNet key head");
    key("linear_value_head_dim", linear_value_head_dim, "width of a Gated DeltaNet value head");
    key("linear_conv_kernel_dim", linear_conv_kernel_dim, "taps of the causal convolution");
    key("num_experts", num_experts, "routed experts per layer");
    key("num_experts_per_tok", num_experts_per_tok, "routed experts a token uses");
    key("moe_intermediate_size", moe_intermediate_size, "width of a routed expert");
    key("shared_expert_intermediate_size", shared_expert_intermediate_size, "width of the shared expert");
    key("norm_topk_prob", norm_topk_prob, "divide the chosen probabilities by their sum");
    key("full_attention_interval", full_attention_interval, "every n-th layer is full attention");
    key("layer_types", layer_types, "the type of every layer; overrides full_attention_interval");
  }

  LayerType layer_type(int64_t layer) const {
    if (!layer_types.empty()) return layer_types[layer];
    return (layer + 1) % full_attention_interval == 0 ? LayerType::kFullAttention : LayerType::kLinearAttention;
  }
  GdnDims gdn() const {
    return {linear_num_key_heads, linear_num_value_heads, linear_key_head_dim, linear_value_head_dim,
            linear_conv_kernel_dim};
  }
  AttentionDims attention() const {
    RopeParameters rope = rope_parameters;
    if (rope.original_max_position_embeddings == 0) rope.original_max_position_embeddings = max_position_embeddings;
    return {num_attention_heads, num_key_value_heads, head_dim,         rotary_dim(),
            rope_theta,          rms_norm_eps,        attn_output_gate, rope};
  }
  int64_t rotary_dim() const { return static_cast<int64_t>(static_cast<double>(head_dim) * partial_rotary_factor); }
};

// Multi-token prediction: one extra block that predicts the token after the next.
struct MtpConfig {
  int64_t depth = 1;
  double loss_weight = 0.1;
  template <class Visit>
  void visit(Visit&& key) {
    key("depth", depth, "MTP blocks: 0 or 1; 0 turns it off");
    key("loss_weight", loss_weight, "lambda, the weight of the MTP loss; 0 turns it off, block and all");
  }
  bool on() const { return depth > 0 && loss_weight > 0; }
};

// Over which tokens the expert load f of the balance loss is counted.
enum class BalanceScope { kMicroBatch, kSequence, kGlobalBatch };
template <>
struct EnumNames<BalanceScope> {
  static constexpr std::array kNames = {"micro_batch", "sequence", "global_batch"};
};
// For the global batch: which counts stand for it, as the true ones are known only after every micro-batch's forward.
enum class BalanceCounts { kExact, kRunning, kPreviousStep };
template <>
struct EnumNames<BalanceCounts> {
  static constexpr std::array kNames = {"exact", "running", "previous_step"};
};

struct BalanceConfig {
  BalanceScope scope = BalanceScope::kGlobalBatch;
  BalanceCounts counts = BalanceCounts::kPreviousStep;
  double loss_weight = 1e-3;
  double z_loss_weight = 0;
  template <class Visit>
  void visit(Visit&& key) {
    key("scope", scope, "tokens over which expert load is counted");
    key("counts", counts,
        "scope global_batch: exact (a second forward pass per extra micro-batch), running (sum since the step began) "
        "or previous_step");
    key("loss_weight", loss_weight, "alpha, the weight of the balance loss; balanced routing gives alpha per layer");
    key("z_loss_weight", z_loss_weight, "weight of the router z-loss, mean of logsumexp^2; 0 = off");
  }
};

inline constexpr std::string_view kHuggingFacePrefix = "hf:";  // of an init.from that names a Hugging Face folder

struct InitConfig {
  std::string from;
  bool fresh_mtp = false;
  bool resize_vocabulary = false;
  bool equal_norm_router_rows = true;
  bool scale_output_projections = true;
  template <class Visit>
  void visit(Visit&& key) {
    key("from", from,
        "take the weights of this checkpoint or run folder (its newest), or of hf:DIR, a model folder in the "
        "Hugging Face format, instead of random ones; step, moments and data start anew");
    key("fresh_mtp", fresh_mtp, "make a new MTP block where init.from holds none");
    key("resize_vocabulary", resize_vocabulary,
        "take a vocabulary of another size from init.from: tokens beyond its end get new rows, those beyond "
        "vocab_size go");
    key("equal_norm_router_rows", equal_norm_router_rows,
        "scale every row of the router to one norm, so that no expert is preferred at the start");
    key("scale_output_projections", scale_output_projections,
        "divide the initial output projections by sqrt(2 * num_hidden_layers)");
  }
};

}  // namespace braid
