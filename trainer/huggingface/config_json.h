#pragma once

#include <string>

#include "kernels/core/tensor.h"
#include "model/config.h"

namespace braid {

// Reads transformers' config.json of a Qwen3-Next model, in the spelling of version 4 (rope_theta,
// partial_rotary_factor, torch_dtype) or 5 (rope_parameters, dtype, layer_types). Keys that Braid has no use for are
// ignored; values it cannot honour (another architecture, dense layers, biases, tied embeddings, scaled rotary
// embeddings, dropout, ...) are refused, and so is what fails check_model_config. Absent keys have the defaults of
// Qwen3NextConfig in transformers 5.23. layer_types is empty in the result if full_attention_interval says the same.
// Errors: CheckpointError with file, key and what is wrong.
ModelConfig read_config_json(const std::string& path);

// The same model as config.json in the spelling of version 4, loadable by both; dtype: of the weights beside it.
std::string to_config_json(const ModelConfig& model, DType dtype);

}  // namespace braid
