#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/tokenizer/tokenizer.h"
#include "model/model.h"

namespace braid {

// A needle in a haystack: a text that hides a number of five digits somewhere and asks for it at its end.
struct PasskeyPrompt {
  std::vector<uint32_t> tokens;
  std::string key;
};
// Of num_tokens tokens; the key stands behind the share `depth` (0 to 1) of the text around it. The same seed, the same
// prompt.   Errors: ConfigError if the tokens do not even hold key and question.
PasskeyPrompt make_passkey_prompt(const Tokenizer& tokenizer, int64_t num_tokens, double depth, uint64_t seed);

struct PasskeyScore {
  int64_t num_tokens;
  double depth;
  int64_t found, trials;
};
// How often the model, shaped for one row of one token, answers with the key: the most probable tokens, one by one.
PasskeyScore passkey_score(Context& ctx, Model& model, const Tokenizer& tokenizer, int64_t num_tokens, double depth,
                           int64_t trials, uint64_t seed);

}  // namespace braid
