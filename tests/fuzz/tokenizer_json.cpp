// tokenizer.json: whatever is taken encodes and decodes.
#include <stdexcept>

#include "data/tokenizer/bpe_tokenizer.h"
#include "kernels/core/error.h"
#include "tests/fuzz/fuzz_target.h"

namespace braid::fuzz {

std::vector<std::string> seeds() {
  return {test_data("tokenizers/chained.json"), test_data("tokenizers/gpt4.json"), test_data("tokenizers/qwen.json")};
}

void take(std::string_view bytes) {
  const BpeTokenizer tokenizer("fuzz", std::string(bytes), "");
  const std::vector<uint32_t> ids =
      tokenizer.encode("It's 12345 caf\u00e9s <|endoftext|> \u6f22\u5b57\n\n  e\u0301\xff!");
  for (const uint32_t id : ids)
    if (id >= tokenizer.vocab_size()) throw std::logic_error("an id outside the vocabulary");
  tokenizer.decode(ids);
}

}  // namespace braid::fuzz
