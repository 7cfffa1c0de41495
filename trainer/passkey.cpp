#include "trainer/passkey.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "kernels/core/error.h"
#include "kernels/core/philox.h"
#include "trainer/generation.h"

namespace braid {
namespace {

constexpr size_t kDigits = 5;

// The text around the key says nothing, in an order that no two prompts share.
constexpr std::array kSentences = {
    "The grass is green. ",   "The sky is blue. ",         "The sun is yellow. ",        "Here we go. ",
    "There and back again. ", "A river runs to the sea. ", "The wind comes from afar. ", "Nobody counts the leaves. "};

std::string random_key(uint64_t seed) {
  std::string key;
  for (size_t i = 0; i < kDigits; ++i) key += static_cast<char>('0' + philox(seed, 1, i)[0] % 10);
  return key;
}

}  // namespace

PasskeyPrompt make_passkey_prompt(const Tokenizer& tokenizer, int64_t num_tokens, double depth, uint64_t seed) {
  PasskeyPrompt prompt{{}, random_key(seed)};
  const auto needle =
      tokenizer.encode(concat("The pass key is ", prompt.key, ". Remember it. ", prompt.key, " is the pass key. "));
  const auto question = tokenizer.encode("What is the pass key? The pass key is ");
  const int64_t around = num_tokens - std::ssize(needle) - std::ssize(question);
  check<ConfigError>(around >= 0, "a prompt of ", num_tokens, " tokens is too short: key and question are ",
                     num_tokens - around);
  std::vector<uint32_t> haystack;
  for (uint64_t i = 0; std::ssize(haystack) < around; ++i) {
    const auto sentence = tokenizer.encode(kSentences[philox(seed, 2, i)[0] % kSentences.size()]);
    haystack.insert(haystack.end(), sentence.begin(), sentence.end());
  }
  haystack.resize(static_cast<size_t>(around));
  const auto before = std::clamp<int64_t>(std::llround(depth * static_cast<double>(around)), 0, around);
  prompt.tokens.assign(haystack.begin(), haystack.begin() + before);
  prompt.tokens.insert(prompt.tokens.end(), needle.begin(), needle.end());
  prompt.tokens.insert(prompt.tokens.end(), haystack.begin() + before, haystack.end());
  prompt.tokens.insert(prompt.tokens.end(), question.begin(), question.end());
  return prompt;
}

PasskeyScore passkey_score(Context& ctx, Model& model, const Tokenizer& tokenizer, int64_t num_tokens, double depth,
                           int64_t trials, uint64_t seed) {
  PasskeyScore score{num_tokens, depth, 0, trials};
  for (int64_t trial = 0; trial < trials; ++trial) {
    const PasskeyPrompt prompt = make_passkey_prompt(tokenizer, num_tokens, depth, seed + static_cast<uint64_t>(trial));
    const auto length = static_cast<int64_t>(tokenizer.encode(prompt.key).size()) + 1;  // and a space
    const auto answer =
        generate(ctx, model, prompt.tokens, {.num_tokens = length, .temperature = 0, .num_ids = tokenizer.vocab_size()},
                 tokenizer.end_of_document());
    std::string text = tokenizer.decode(answer);
    text.erase(0, std::min(text.find_first_not_of(' '), text.size()));
    score.found += text.starts_with(prompt.key);
  }
  return score;
}

}  // namespace braid
