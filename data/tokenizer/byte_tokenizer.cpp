#include "data/tokenizer/tokenizer.h"
#include "kernels/core/error.h"
#include "kernels/core/sha256.h"

namespace braid {
namespace {

class ByteEncoder final : public TextEncoder {
 public:
  void encode(std::string_view text, std::vector<uint32_t>& tokens) override {
    const size_t begin = tokens.size();
    tokens.resize(begin + text.size());
    for (size_t i = 0; i < text.size(); ++i) tokens[begin + i] = static_cast<unsigned char>(text[i]);
  }
};

}  // namespace

std::string ByteTokenizer::digest() const { return sha256("bytes 0..255, <|endoftext|> 256, <|pad|> 257"); }

const std::string& ByteTokenizer::file() const {
  static const std::string none;
  return none;
}

std::unique_ptr<TextEncoder> ByteTokenizer::encoder() const { return std::make_unique<ByteEncoder>(); }

std::string ByteTokenizer::decode(const std::vector<uint32_t>& tokens) const {
  std::string text;
  text.reserve(tokens.size());
  for (uint32_t id : tokens) {
    check<DataError>(id < kVocabSize, "token id ", id, " is outside the vocabulary of ", kVocabSize);
    if (id < kEndOfDocument) text += static_cast<char>(id);
  }
  return text;
}

}  // namespace braid
