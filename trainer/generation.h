#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "model/model.h"

namespace braid {

struct SamplingConfig {
  int64_t num_tokens = 200;
  double temperature = 0.8;  // 0: always the most probable token
  int64_t top_k = 0;         // 0: all tokens
  uint64_t seed = 1;
  // Ids of the tokenizer; those from there on, which only fill up a model's vocabulary, are never chosen. 0: all are.
  int64_t num_ids = 0;
};

// Reads one text piece by piece: what a token costs does not grow with the text, but for attention's keys.
class TextReader {
 public:
  // model: shaped for one row of one token, with weights. max_tokens: of the whole text.
  TextReader(Context& ctx, Model& model, int64_t max_tokens);

  // Goes on with `tokens` (at least one); the logits (V) of the token after them, in host memory until the next call.
  const Tensor& read(std::span<const uint32_t> tokens);

 private:
  Context& ctx_;
  Model& model_;
  ModelCache cache_;
  Arena memory_;
  std::vector<double> logits_memory_;  // numbers of either dtype
  Tensor logits_;
};

// Continues `prompt` (not empty) token by token; stops early at the end-of-document id. The model must be shaped for
// one row of one token. Returns the new tokens.   Errors: ConfigError if the prompt is empty or holds a token that the
// model does not know, or if prompt and new tokens are more than its max_position_embeddings; NumericsError if a logit
// is not finite.
std::vector<uint32_t> generate(Context& ctx, Model& model, const std::vector<uint32_t>& prompt,
                               const SamplingConfig& sampling, int64_t end_of_document);

}  // namespace braid
