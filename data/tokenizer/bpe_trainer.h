#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>

#include "data/tokenizer/pre_tokenizer.h"

namespace braid {

// Learns a byte-level BPE vocabulary: <|endoftext|> is id 0, the 256 bytes follow in the order of the characters that
// stand for them, then the merges. Again and again the most frequent pair of neighbours inside words is merged, of
// equally frequent ones the pair with the lowest ids. The same words give the same merges as
// `tokenizers.trainers.BpeTrainer` (0.23) with special_tokens=["<|endoftext|>"] and
// initial_alphabet=ByteLevel.alphabet(). Words are those of Qwen's pattern on text in normal form C.   Source:
// models/bpe/trainer.rs and word.rs there.
class BpeTrainer {
 public:
  BpeTrainer();
  void add(std::string_view text);
  int64_t num_words() const { return static_cast<int64_t>(words_.size()); }  // different ones

  struct Result {
    std::string json;        // a tokenizer.json
    int64_t vocab_size = 0;  // less than asked for if no pair is left
  };
  // Errors: ConfigError for a vocab_size below 257.
  Result train(int64_t vocab_size) const;

 private:
  PreTokenizer pre_tokenizer_;
  PreTokenizer::Scratch scratch_;
  std::string repaired_, normal_;
  std::unordered_map<std::string, int64_t> words_;  // how often each occurs
};

}  // namespace braid
