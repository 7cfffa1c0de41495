#pragma once

#include <array>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "data/tokenizer/byte_pairs.h"
#include "data/tokenizer/pre_tokenizer.h"
#include "data/tokenizer/tokenizer.h"

namespace braid {

// Byte-level BPE as a Hugging Face tokenizer.json describes it: added tokens are cut out of the text, what is between
// them is normalised (form C), cut into words, and each word's bytes are merged. The ids are those of the `tokenizers`
// package with add_special_tokens=False; like there, the text of a special token in a document becomes that token.
//   normalizer      none, NFC, or a sequence of them
//   pre_tokenizer   Split by a pattern (Isolated; Removed with invert), Digits, ByteLevel without a space in front;
//   sequences
//   model           BPE whose vocabulary holds every byte; ignore_merges; merges as "a b" or ["a", "b"]
//   added_tokens    lstrip, rstrip, normalized, special; not single_word
// Post-processor, decoder, truncation and padding say nothing about the ids of a text and are not read.
// Source: tokenizers 0.23, tokenizer/added_vocabulary.rs, models/bpe, pre_tokenizers.
class BpeTokenizer final : public Tokenizer {
 public:
  // From the text of a tokenizer.json; `where` names it in errors. `end_of_document` as in open_tokenizer.
  // Errors: DataError for what is wrong in it or is none of the above.
  BpeTokenizer(const std::string& where, std::string json, const std::string& end_of_document);

  int64_t vocab_size() const override { return static_cast<int64_t>(tokens_.size()); }
  int64_t end_of_document() const override { return end_of_document_; }
  std::string name() const override { return "bpe"; }
  std::string digest() const override { return digest_; }  // SHA-256 of the file
  const std::string& file() const override { return file_; }
  std::unique_ptr<TextEncoder> encoder() const override;
  std::string decode(const std::vector<uint32_t>& tokens) const override;

 private:
  friend class BpeEncoder;
  struct AddedToken {
    std::string text;
    uint32_t id = 0;
    bool strips_left = false, strips_right = false, is_special = false;
  };
  // Tokens to be looked for in a text, by their first byte, the longest first.
  class AddedTokens {
   public:
    void add(AddedToken token);
    bool empty() const { return count_ == 0; }
    // The longest token at `at`, or null.
    const AddedToken* at(std::string_view text, size_t at) const {
      for (const AddedToken& token : by_first_byte_[static_cast<unsigned char>(text[at])])
        if (text.substr(at).starts_with(token.text)) return &token;
      return nullptr;
    }

   private:
    std::array<std::vector<AddedToken>, 256> by_first_byte_;
    int count_ = 0;
  };
  struct Token {
    std::string bytes;
    bool exists = false, is_special = false;
  };
  struct Reader;

  std::string file_, digest_;
  std::vector<Token> tokens_;  // by id
  int64_t end_of_document_ = 0;
  bool normalizes_ = false, ignores_merges_ = false;
  AddedTokens raw_added_, normalized_added_;
  PreTokenizer pre_tokenizer_;
  std::unique_ptr<BytePairs> pairs_;
  std::unordered_map<std::string, uint32_t> words_;  // ignore_merges: ids by bytes
};

}  // namespace braid
