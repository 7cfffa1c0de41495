#pragma once

#include <optional>
#include <string>

#include "trainer/checkpoint/checkpoint.h"
#include "trainer/huggingface/huggingface_writer.h"

namespace braid {

// Writes the weights of a checkpoint, of any layout, as a model folder in the Hugging Face format, MTP block included:
// as the dtype asked for (rounded to nearest, ties to even), else each tensor as the checkpoint has it. Verifies every
// byte it reads. Takes kConversionMemoryBytes at most.
// Errors: CheckpointError if weights are missing, damaged, or F64 without a dtype to convert them to; IoError if the
// name is taken or the system refuses.
void export_model(const CheckpointReader& source, const std::string& folder, std::optional<DType> dtype,
                  int64_t max_file_bytes = kModelFileBytes);

}  // namespace braid
