#pragma once

#include "model/config.h"

namespace braid::testing {

// Small enough for finite differences, odd enough to catch mixed-up extents.
inline ModelConfig tiny_model_config() {
  ModelConfig c;
  c.vocab_size = 11;
  c.hidden_size = 12;
  c.num_hidden_layers = 2;
  c.layer_types = {LayerType::kLinearAttention, LayerType::kFullAttention};
  c.num_attention_heads = 4;
  c.num_key_value_heads = 2;
  c.head_dim = 6;
  c.partial_rotary_factor = 0.67;  // rotary_dim 4
  c.rope_theta = 100;
  c.max_position_embeddings = 64;
  c.initializer_range = 0.3;
  c.linear_num_key_heads = 2;
  c.linear_num_value_heads = 4;
  c.linear_key_head_dim = 5;
  c.linear_value_head_dim = 3;
  c.linear_conv_kernel_dim = 4;
  c.num_experts = 6;
  c.num_experts_per_tok = 2;
  c.moe_intermediate_size = 5;
  c.shared_expert_intermediate_size = 7;
  return c;
}

}  // namespace braid::testing
