#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace braid {

// Text to token ids and back. decode(encode(text)) == text.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  virtual int64_t vocab_size() const = 0;
  virtual int64_t end_of_document() const = 0;
  virtual std::string name() const = 0;    // "byte"
  virtual std::string digest() const = 0;  // SHA-256 of what defines it, hex; shards of different digests do not mix
  virtual void encode(std::string_view text, std::vector<uint32_t>& tokens) const = 0;  // appends
  virtual std::string decode(const std::vector<uint32_t>& tokens) const = 0;            // specials are left out
};

// The 256 bytes, then <|endoftext|> (256) and <|pad|> (257).
class ByteTokenizer final : public Tokenizer {
 public:
  static constexpr int64_t kEndOfDocument = 256, kPad = 257, kVocabSize = 258;
  int64_t vocab_size() const override { return kVocabSize; }
  int64_t end_of_document() const override { return kEndOfDocument; }
  std::string name() const override { return "byte"; }
  std::string digest() const override;
  void encode(std::string_view text, std::vector<uint32_t>& tokens) const override;
  std::string decode(const std::vector<uint32_t>& tokens) const override;
};

}  // namespace braid
