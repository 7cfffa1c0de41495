#include "data/tokenizer.h"

#include "kernels/core/error.h"
#include "kernels/core/sha256.h"

namespace braid {

std::string ByteTokenizer::digest() const { return sha256("bytes 0..255, <|endoftext|> 256, <|pad|> 257"); }

void ByteTokenizer::encode(std::string_view text, std::vector<uint32_t>& tokens) const {
  tokens.reserve(tokens.size() + text.size());
  for (char c : text) tokens.push_back(static_cast<unsigned char>(c));
}

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
