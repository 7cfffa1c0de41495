#pragma once

#include <string>

#include "trainer/huggingface/huggingface_reader.h"

namespace braid {

// Makes `checkpoint` a committed checkpoint of step 0 with the weights of a model folder and nothing else, each tensor
// in the dtype that the folder has it in (F16 as F32). Its config is the folder's model with every other key at its
// default. The data files hold at most max_file_bytes of weights each; a larger tensor is cut.
// Until it is complete nothing has that name. Takes kConversionMemoryBytes at most.
// Errors: CheckpointError from reading; IoError if the name is taken or the system refuses.
inline constexpr int64_t kDataFileBytes = int64_t{1} << 30;
void import_model(const HuggingFaceReader& source, const std::string& checkpoint,
                  int64_t max_file_bytes = kDataFileBytes);

}  // namespace braid
