#include "data/tokenizer/tokenizer.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "data/tokenizer/bpe_tokenizer.h"
#include "data/tokenizer/bpe_trainer.h"
#include "data/tokenizer/byte_pairs.h"
#include "data/tokenizer/pre_tokenizer.h"
#include "data/tokenizer/unicode.h"
#include "kernels/core/error.h"
#include "kernels/core/sha256.h"
#include "tests/file_testing.h"
#include "tests/messages.h"

namespace braid {
namespace {

using namespace braid::testing;
using Json = nlohmann::json;

std::string tokenizer_path(const std::string& name) {
  return concat(BRAID_SOURCE_FOLDER "/tests/data/tokenizers/", name, ".json");
}

std::string from_hex(const std::string& hex) {
  std::string bytes;
  for (size_t i = 0; i < hex.size(); i += 2) bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  return bytes;
}

TEST(ByteTokenizer, DecodesWhatItEncoded) {
  const ByteTokenizer tokenizer;
  std::string text;
  for (int byte = 0; byte < 256; ++byte) text += static_cast<char>(byte);
  std::vector<uint32_t> tokens = {7};
  tokenizer.encoder()->encode(text, tokens);
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

// The ids are those of the `tokenizers` package: scripts/make_tokenizer_cases.py.
TEST(BpeTokenizer, GivesTheIdsOfTheTokenizersPackage) {
  for (const char* name : {"qwen", "gpt4", "chained"}) {
    SCOPED_TRACE(name);
    const auto tokenizer = open_tokenizer(tokenizer_path(name));
    const Json cases = Json::parse(bytes_of(tokenizer_path(concat(name, "_cases"))));
    ASSERT_GT(cases["cases"].size(), 80u);
    const auto encoder = tokenizer->encoder();
    for (int repetition : {1, 2})  // from memory, too
      for (const Json& c : cases["cases"]) {
        std::vector<uint32_t> tokens;
        encoder->encode(from_hex(c["text"]), tokens);
        EXPECT_EQ(tokens, c["ids"].get<std::vector<uint32_t>>()) << c["text"] << ", repetition " << repetition;
      }
  }
}

TEST(BpeTokenizer, HasTheIdentityOfItsFile) {
  const auto tokenizer = open_tokenizer(tokenizer_path("qwen"));
  EXPECT_EQ(tokenizer->name(), "bpe");
  EXPECT_EQ(tokenizer->vocab_size(), 644);
  EXPECT_EQ(tokenizer->end_of_document(), 0);
  EXPECT_EQ(tokenizer->file(), bytes_of(tokenizer_path("qwen")));
  EXPECT_EQ(tokenizer->digest(), sha256(tokenizer->file()));
  EXPECT_EQ(open_tokenizer(tokenizer_path("qwen"), "<think>")->end_of_document(), 640);
}

TEST(BpeTokenizer, DecodesWhatItEncoded) {
  const auto tokenizer = open_tokenizer(tokenizer_path("gpt4"));
  const std::string text = "void f();\r\n\t// Привет 世界 👩‍👩‍👧 1234567 e\u0301\n";
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
  EXPECT_EQ(tokenizer->decode({0}), "");  // <|endoftext|>
  EXPECT_THROW(tokenizer->decode({100000}), DataError);
}

TEST(BpeTokenizer, CountsWhatItRepaired) {
  const auto tokenizer = open_tokenizer(tokenizer_path("qwen"));
  const auto encoder = tokenizer->encoder();
  std::vector<uint32_t> tokens;
  encoder->encode("all is well: é 世界", tokens);
  EXPECT_EQ(encoder->num_repaired(), 0);
  encoder->encode("a\xff\xe2\x82z\xed\xa0\x80", tokens);
  EXPECT_EQ(encoder->num_repaired(), 5);  // ff, e2 82, ed, a0, 80
}

// Every error names the file and what is wrong in it.
TEST(BpeTokenizer, RefusesWhatItDoesNotUnderstand) {
  const Json good = Json::parse(bytes_of(tokenizer_path("qwen")));
  const auto error = [&](auto&& change) {
    Json json = good;
    change(json);
    return message_of<DataError>([&] { BpeTokenizer("t.json", json.dump(), ""); });
  };
  EXPECT_EQ(error([](Json&) {}), "");
  const auto expect = [](const std::string& message, const std::string& part) {
    EXPECT_EQ(message.substr(0, 8), "t.json: ");
    EXPECT_NE(message.find(part), message.npos) << message << "\nlacks: " << part;
  };
  expect(message_of<DataError>([] { BpeTokenizer("t.json", "{\"model\":", ""); }),
         "t.json: is not JSON: parse error at");
  expect(message_of<DataError>([] { BpeTokenizer("t.json", "[1]", ""); }), "is not an object");
  expect(error([](Json& j) { j.erase("model"); }), "model is missing");
  expect(error([](Json& j) { j["model"]["type"] = "WordPiece"; }), "model.type is 'WordPiece', only BPE");
  expect(error([](Json& j) { j["model"]["byte_fallback"] = true; }), "model.byte_fallback");
  expect(error([](Json& j) { j["model"]["dropout"] = 0.1; }), "model.dropout");
  expect(error([](Json& j) { j["model"]["end_of_word_suffix"] = "</w>"; }), "model.end_of_word_suffix");
  expect(error([](Json& j) { j["model"]["vocab"] = 3; }), "vocab is number, expected object");
  expect(error([](Json& j) { j["model"]["vocab"].erase("a"); }), "which the vocabulary does not hold");
  expect(error([](Json& j) { j["model"]["vocab"]["a"] = -1; }), "the id of a is -1, expected a number from 0");
  expect(error([](Json& j) { j["model"]["vocab"]["a"] = 4000000000u; }), "the id of a is 4000000000");
  expect(error([](Json& j) { j["model"]["vocab"]["another"] = 5; }), "id 5 has two tokens");
  expect(error([](Json& j) { j["model"]["merges"][7] = "abc"; }), "merge 7 is 'abc'");
  expect(error([](Json& j) { j["model"]["merges"][7] = Json::array({"a"}); }), "merge 7 is not a pair");
  expect(error([](Json& j) { j["model"]["merges"][7] = "nix da"; }), "merge 7 needs the token nix");
  expect(error([](Json& j) { j["normalizer"]["type"] = "NFKC"; }), "normalizer NFKC is not understood");
  expect(error([](Json& j) { j.erase("pre_tokenizer"); }), "pre_tokenizer is missing");
  expect(error([](Json& j) { j["pre_tokenizer"]["pretokenizers"].erase(1); }), "no ByteLevel");
  expect(error([](Json& j) { j["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "MergedWithNext"; }),
         "MergedWithNext");
  expect(error([](Json& j) { j["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = true; }), "add_prefix_space");
  expect(error([](Json& j) { j["pre_tokenizer"]["pretokenizers"][0]["type"] = "Metaspace"; }), "Metaspace");
  expect(error([](Json& j) { j["added_tokens"][1]["single_word"] = true; }), "single_word");
  expect(error([](Json& j) { j["added_tokens"][1].erase("id"); }), "has no id");
  expect(error([](Json& j) { j["added_tokens"][1]["content"] = "a"; }), "added token a has id 640, but");
  EXPECT_EQ(message_of<DataError>([&] { BpeTokenizer("t.json", good.dump(), "<eot>"); }),
            "t.json: it has no token <eot> to end documents with");
  Json endless = good;
  endless["added_tokens"].erase(0);
  endless["model"]["vocab"]["another"] = endless["model"]["vocab"]["<|endoftext|>"];
  endless["model"]["vocab"].erase("<|endoftext|>");
  expect(message_of<DataError>([&] { BpeTokenizer("t.json", endless.dump(), ""); }), "name one with --end-of-document");
  EXPECT_NE(message_of<DataError>([] { open_tokenizer("/nowhere/tokenizer.json"); }).find("/nowhere/tokenizer.json"),
            std::string::npos);
}

// The merges are those of the `tokenizers` package: scripts/make_tokenizer_cases.py.
TEST(BpeTrainer, LearnsTheMergesOfTheTokenizersPackage) {
  const std::string text = bytes_of(BRAID_SOURCE_FOLDER "/tests/data/tokenizers/training.txt");
  BpeTrainer trainer;
  trainer.add(text);
  const BpeTrainer::Result result = trainer.train(900);
  EXPECT_EQ(result.vocab_size, 900);
  const Json found = Json::parse(result.json), expected = Json::parse(bytes_of(tokenizer_path("trained")));
  EXPECT_EQ(found["model"]["vocab"], expected["vocab"]);
  EXPECT_EQ(found["model"]["merges"], expected["merges"]);
  const BpeTokenizer tokenizer("trained", result.json, "");
  EXPECT_EQ(tokenizer.decode(tokenizer.encode(text.substr(0, 22))), text.substr(0, 22));
  EXPECT_LT(trainer.train(1 << 20).vocab_size, 1 << 20);  // no pair is left
  EXPECT_THROW(trainer.train(256), ConfigError);
}

TEST(PreTokenizer, RefusesWhatOnigurumaReadsDifferently) {
  for (const char* pattern : {"\\w+", "\\ba", "\\h", "[a&&b]", "[a[bc]]", "a{2}+", "(?<n>a)", "(?i)a", "(*UTF)a",
                              "\\x41", "[]a]", "[\\S]", "\\pL"}) {
    const std::string message =
        message_of<DataError>([&] { PreTokenizer().add("t.json", pattern, PreTokenizer::Between::kKeep); });
    EXPECT_NE(message.find("is not understood here"), message.npos) << pattern << ": " << message;
  }
  const auto add = [](const char* pattern) {
    return message_of<DataError>([&] { PreTokenizer().add("t.json", pattern, PreTokenizer::Between::kKeep); });
  };
  EXPECT_NE(add("a*").find("can match nothing at all"), std::string::npos);
  EXPECT_NE(add("(a").find("the pattern is wrong"), std::string::npos);
  EXPECT_NE(add("[a").find("a [ without its ]"), std::string::npos);
  EXPECT_NE(add("\xff").find("not UTF-8"), std::string::npos);
}

// A long word takes the path with a heap, its parts that without.
TEST(BytePairs, LongAndShortWordsMergeAlike) {
  std::array<uint32_t, 256> bytes;
  for (uint32_t b = 0; b < 256; ++b) bytes[b] = b;
  // ab -> 256, then (ab)(ab) -> 257, then bc -> 258, then a(bc) never, as ab comes first.
  const BytePairs pairs(bytes, {{'a', 'b', 256}, {256, 256, 257}, {'b', 'c', 258}, {'a', 258, 259}, {'c', 'c', 260}});
  BytePairs::Scratch scratch;
  const auto encode = [&](const std::string& word) {
    std::vector<uint32_t> tokens;
    pairs.encode(word, scratch, tokens);
    return tokens;
  };
  EXPECT_EQ(encode("ababab"), (std::vector<uint32_t>{257, 256}));
  EXPECT_EQ(encode("abcbcccc"), (std::vector<uint32_t>{256, 'c', 258, 260, 'c'}));
  EXPECT_EQ(encode(""), (std::vector<uint32_t>{}));
  std::string word;
  std::vector<uint32_t> expected;
  for (int i = 0; i < 50; ++i) {
    word += "abcbccccx";
    for (uint32_t id : {256, int{'c'}, 258, 260, int{'c'}, int{'x'}}) expected.push_back(id);
  }
  EXPECT_EQ(encode(word), expected);
}

TEST(Unicode, RepairsAsPythonDoes) {
  const auto repaired = [](std::string_view text) {
    std::string out;
    repair_utf8(text, out);
    return out;
  };
  EXPECT_EQ(repaired("\xf0\x9f\x98z"), "\uFFFDz");                      // one beginning of a character
  EXPECT_EQ(repaired("\xe0\x80\x80"), "\uFFFD\uFFFD\uFFFD");            // overlong
  EXPECT_EQ(repaired("\xed\xa0\x80"), "\uFFFD\uFFFD\uFFFD");            // a surrogate
  EXPECT_EQ(repaired("\xf4\x90\x80\x80"), "\uFFFD\uFFFD\uFFFD\uFFFD");  // beyond U+10FFFF
  EXPECT_EQ(valid_utf8_bytes("é\xc3"), 2u);
}

}  // namespace
}  // namespace braid
