#pragma once

#include <cstdint>
#include <vector>

#include "model/model.h"

namespace braid {

struct SamplingConfig {
  int64_t num_tokens = 200;
  double temperature = 0.8;  // 0: always the most probable token
  int64_t top_k = 0;         // 0: all tokens
  uint64_t seed = 1;
};

// Continues `prompt` (not empty) token by token; stops early at the end-of-document id. The model must be shaped for
// one row; the context is its last row_tokens tokens, computed anew for every token. Returns the new tokens.
std::vector<uint32_t> generate(Context& ctx, Model& model, std::vector<uint32_t> prompt, const SamplingConfig& sampling,
                               int64_t end_of_document);

}  // namespace braid
