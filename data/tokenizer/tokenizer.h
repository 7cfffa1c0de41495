#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace braid {

// Text to token ids, for one thread: it may remember what it has met.
class TextEncoder {
 public:
  virtual ~TextEncoder() = default;
  // Appends the ids of a whole text. Errors: DataError.
  virtual void encode(std::string_view text, std::vector<uint32_t>& tokens) = 0;
  // Places so far where the text was not UTF-8 and U+FFFD was put instead; 0 for bytes.
  virtual int64_t num_repaired() const { return 0; }
};

// What defines a vocabulary; any number of threads may share one.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  virtual int64_t vocab_size() const = 0;  // largest id + 1
  virtual int64_t end_of_document() const = 0;
  virtual std::string name() const = 0;  // "byte", "bpe"
  // SHA-256, hex, of what defines it; shards of different digests do not mix.
  virtual std::string digest() const = 0;
  virtual const std::string& file() const = 0;               // the tokenizer.json as it was read; empty for bytes
  virtual std::unique_ptr<TextEncoder> encoder() const = 0;  // it needs the tokenizer as long as it lives
  // The bytes that tokens stand for, specials left out.   Errors: DataError for an id outside the vocabulary.
  virtual std::string decode(const std::vector<uint32_t>& tokens) const = 0;

  std::vector<uint32_t> encode(std::string_view text) const {  // of a few texts; many go through one encoder
    std::vector<uint32_t> tokens;
    encoder()->encode(text, tokens);
    return tokens;
  }
};

// The 256 bytes, then <|endoftext|> (256) and <|pad|> (257). decode(encode(text)) == text.
class ByteTokenizer final : public Tokenizer {
 public:
  static constexpr int64_t kEndOfDocument = 256, kPad = 257, kVocabSize = 258;
  int64_t vocab_size() const override { return kVocabSize; }
  int64_t end_of_document() const override { return kEndOfDocument; }
  std::string name() const override { return "byte"; }
  std::string digest() const override;
  const std::string& file() const override;
  std::unique_ptr<TextEncoder> encoder() const override;
  std::string decode(const std::vector<uint32_t>& tokens) const override;
};

// "bytes", or a path to a tokenizer.json (data/tokenizer/bpe_tokenizer.h). `end_of_document` names the token that ends
// a document, "#7" by its id; empty: the usual names are tried.   Errors: DataError
// naming the file and what is wrong with it.
std::unique_ptr<Tokenizer> open_tokenizer(const std::string& name, const std::string& end_of_document = "");

}  // namespace braid
