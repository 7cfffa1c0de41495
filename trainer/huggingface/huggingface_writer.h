#pragma once

#include <string>
#include <vector>

#include "model/config.h"
#include "trainer/huggingface/weight_blocks.h"

namespace braid {

// Writes a model folder in the Hugging Face format: config.json (dtype: that of the first parameter) and
// model.safetensors, or if that were longer than max_file_bytes, files of at most that length (a tensor that is longer
// has one for itself) with model.safetensors.index.json. The tensors follow the parameter table, the experts one by one
// (stored_tensors.h). Until it is complete nothing has that name.
// Errors: what reading the source throws; IoError if the name is taken or the system refuses.
inline constexpr int64_t kModelFileBytes = 5'000'000'000;  // what hubs and transformers take for the longest
void write_model_folder(const WeightSource& source, const ModelConfig& model,
                        const std::vector<TypedParameter>& parameters, const std::string& path,
                        int64_t max_file_bytes = kModelFileBytes);

}  // namespace braid
