#include "trainer/passkey.h"

#include <gtest/gtest.h>

#include "kernels/core/error.h"

namespace braid {
namespace {

const ByteTokenizer kBytes;

TEST(Passkey, ThePromptHasTheLengthAndHidesItsKeyAtTheDepth) {
  for (const int64_t length : {100, 400, 5000}) {
    double last = -1;
    for (const double depth : {0.0, 0.25, 0.5, 1.0}) {
      const PasskeyPrompt prompt = make_passkey_prompt(kBytes, length, depth, 7);
      EXPECT_EQ(std::ssize(prompt.tokens), length);
      const std::string text = kBytes.decode(prompt.tokens), needle = "The pass key is " + prompt.key;
      EXPECT_EQ(prompt.key.find_first_not_of("0123456789"), std::string::npos);
      EXPECT_EQ(prompt.key.size(), 5u);
      ASSERT_NE(text.find(needle), std::string::npos) << text;
      EXPECT_TRUE(text.ends_with("The pass key is ")) << text;
      EXPECT_EQ(text.find(prompt.key, text.find(needle) + needle.size() + 40), std::string::npos) << "told twice";
      const auto at = static_cast<double>(text.find(needle));
      EXPECT_GT(at, last);
      last = at;
    }
    EXPECT_EQ(kBytes.decode(make_passkey_prompt(kBytes, length, 0, 7).tokens).find("The pass key is"), 0u);
  }
}

TEST(Passkey, SeedsGiveOtherKeysAndOtherTexts) {
  const PasskeyPrompt a = make_passkey_prompt(kBytes, 300, 0.5, 1), again = make_passkey_prompt(kBytes, 300, 0.5, 1);
  const PasskeyPrompt b = make_passkey_prompt(kBytes, 300, 0.5, 2);
  EXPECT_EQ(a.tokens, again.tokens);
  EXPECT_NE(a.key, b.key);
  EXPECT_NE(kBytes.decode(a.tokens).substr(0, 60), kBytes.decode(b.tokens).substr(0, 60));
  EXPECT_THROW(make_passkey_prompt(kBytes, 60, 0.5, 1), ConfigError);
}

}  // namespace
}  // namespace braid
