#include "data/tokenizer.h"

#include <gtest/gtest.h>

#include "kernels/core/error.h"

namespace braid {
namespace {

TEST(ByteTokenizer, DecodesWhatItEncoded) {
  const ByteTokenizer tokenizer;
  std::string text;
  for (int byte = 0; byte < 256; ++byte) text += static_cast<char>(byte);
  std::vector<uint32_t> tokens = {7};
  tokenizer.encode(text, tokens);
  ASSERT_EQ(tokens.size(), 257u);  // appended
  for (uint32_t byte = 0; byte < 256; ++byte) EXPECT_EQ(tokens[byte + 1], byte);
  EXPECT_EQ(tokenizer.decode(tokens), "\a" + text);
}

TEST(ByteTokenizer, LeavesSpecialsOutAndRefusesUnknownIds) {
  const ByteTokenizer tokenizer;
  EXPECT_EQ(tokenizer.decode({'a', ByteTokenizer::kEndOfDocument, 'b', ByteTokenizer::kPad}), "ab");
  EXPECT_THROW(tokenizer.decode({'a', ByteTokenizer::kVocabSize}), DataError);
}

// Shards and checkpoints hold this digest: it must never change for the same tokenizer.
TEST(ByteTokenizer, HasAFixedIdentity) {
  const ByteTokenizer tokenizer;
  EXPECT_EQ(tokenizer.name(), "byte");
  EXPECT_EQ(tokenizer.vocab_size(), 258);
  EXPECT_EQ(tokenizer.end_of_document(), 256);
  EXPECT_EQ(tokenizer.digest(), "9fdb61e6270640ad23f94d7d3f671f0c29f2c5b6940622083cbd885530e32e2f");
}

}  // namespace
}  // namespace braid
