#include "data/tokenizer/bpe_trainer.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>
#include <queue>
#include <utility>
#include <vector>

#include "data/tokenizer/byte_pairs.h"
#include "data/tokenizer/unicode.h"
#include "kernels/core/error.h"

namespace braid {
namespace {

constexpr const char* kEndToken = "<|endoftext|>";
constexpr const char* kPattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

using Pair = std::pair<uint32_t, uint32_t>;

struct PairHash {
  size_t operator()(const Pair& p) const { return (uint64_t{p.first} << 32 | p.second) * 0x9E3779B97F4A7C15u >> 16; }
};

struct Word {
  std::vector<uint32_t> ids;
  int64_t count;
};

struct Candidate {
  Pair pair;
  int64_t count;
  std::vector<uint32_t> words;  // that may hold it
  bool operator<(const Candidate& other) const {
    return count != other.count ? count < other.count : pair > other.pair;
  }
};

// Merges a pair wherever it stands in a word, left to right; change(pair, +1 or
// -1) for every neighbourhood made or ended.
template <class Change>
void merge(std::vector<uint32_t>& ids, Pair pair, uint32_t merged, Change&& change) {
  for (size_t i = 0; i + 1 < ids.size(); ++i) {
    if (ids[i] != pair.first || ids[i + 1] != pair.second) continue;
    if (i > 0) {
      change({ids[i - 1], pair.first}, -1);
      change({ids[i - 1], merged}, 1);
    }
    ids[i] = merged;
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(i) + 1);
    if (i + 1 < ids.size()) {
      change({pair.second, ids[i + 1]}, -1);
      change({merged, ids[i + 1]}, 1);
    }
  }
}

nlohmann::ordered_json tokenizer_json(const std::vector<std::string>& tokens, const std::vector<Pair>& merges) {
  nlohmann::ordered_json vocab = nlohmann::ordered_json::object(), pairs = nlohmann::ordered_json::array();
  for (size_t id = 0; id < tokens.size(); ++id) vocab[tokens[id]] = id;
  for (const auto& [left, right] : merges) pairs.push_back({tokens[left], tokens[right]});
  const nlohmann::ordered_json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", false}, {"use_regex", false}};
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", nlohmann::ordered_json::array({{{"id", 0},
                                                           {"content", kEndToken},
                                                           {"single_word", false},
                                                           {"lstrip", false},
                                                           {"rstrip", false},
                                                           {"normalized", false},
                                                           {"special", true}}})},
          {"normalizer", {{"type", "NFC"}}},
          {"pre_tokenizer",
           {{"type", "Sequence"},
            {"pretokenizers",
             nlohmann::ordered_json::array(
                 {{{"type", "Split"}, {"pattern", {{"Regex", kPattern}}}, {"behavior", "Isolated"}, {"invert", false}},
                  byte_level})}}},
          {"post_processor", nullptr},
          {"decoder", byte_level},
          {"model",
           {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", nullptr},
            {"continuing_subword_prefix", nullptr},
            {"end_of_word_suffix", nullptr},
            {"fuse_unk", false},
            {"byte_fallback", false},
            {"ignore_merges", false},
            {"vocab", vocab},
            {"merges", pairs}}}};
}

}  // namespace

BpeTrainer::BpeTrainer() { pre_tokenizer_.add("the pattern of Qwen", kPattern, PreTokenizer::Between::kKeep); }

void BpeTrainer::add(std::string_view text) {
  if (valid_utf8_bytes(text) != text.size()) {
    repaired_.clear();
    repair_utf8(text, repaired_);
    text = repaired_;
  }
  if (!is_nfc(text)) {
    normal_.clear();
    to_nfc(text, normal_);
    text = normal_;
  }
  std::string key;
  pre_tokenizer_.split(text, scratch_, [&](std::string_view word) {
    key.assign(word);
    ++words_[key];
  });
}

BpeTrainer::Result BpeTrainer::train(int64_t vocab_size) const {
  check<ConfigError>(vocab_size >= 257, "a vocabulary of ", vocab_size, " ids has no room for the 256 bytes and ",
                     kEndToken);
  std::vector<int> bytes(256);
  std::iota(bytes.begin(), bytes.end(), 0);
  std::sort(bytes.begin(), bytes.end(), [](int a, int b) { return byte_characters()[a] < byte_characters()[b]; });
  std::vector<std::string> tokens = {kEndToken};
  std::unordered_map<std::string, uint32_t> id_of = {{kEndToken, 0}};
  std::array<uint32_t, 256> byte_ids{};
  for (int b : bytes) {
    std::string name;
    append_code_point(name, byte_characters()[b]);
    byte_ids[b] = static_cast<uint32_t>(tokens.size());
    id_of.emplace(name, byte_ids[b]);
    tokens.push_back(name);
  }

  std::vector<Word> words;
  words.reserve(words_.size());
  for (const auto& [text, count] : words_) {
    Word word{{}, count};
    for (char c : text) word.ids.push_back(byte_ids[static_cast<unsigned char>(c)]);
    words.push_back(std::move(word));
  }

  std::unordered_map<Pair, int64_t, PairHash> counts;
  std::unordered_map<Pair, std::vector<uint32_t>, PairHash> places;
  const auto place = [&](Pair pair, uint32_t word) {
    std::vector<uint32_t>& at = places[pair];
    if (at.empty() || at.back() != word) at.push_back(word);
  };
  for (uint32_t w = 0; w < words.size(); ++w)
    for (size_t i = 0; i + 1 < words[w].ids.size(); ++i) {
      const Pair pair = {words[w].ids[i], words[w].ids[i + 1]};
      counts[pair] += words[w].count;
      place(pair, w);
    }
  std::priority_queue<Candidate> queue;
  const auto queue_places = [&] {
    for (auto& [pair, at] : places)
      if (counts[pair] > 0) queue.push({pair, counts[pair], std::move(at)});
    places.clear();
  };
  queue_places();

  std::vector<Pair> merges;
  while (static_cast<int64_t>(tokens.size()) < vocab_size && !queue.empty()) {
    Candidate top = std::move(const_cast<Candidate&>(queue.top()));
    queue.pop();
    if (const int64_t now = counts[top.pair]; top.count != now) {  // merges since have taken some away
      top.count = now;
      if (now > 0) queue.push(std::move(top));
      continue;
    }
    const std::string name = tokens[top.pair.first] + tokens[top.pair.second];
    const auto [found, is_new] = id_of.emplace(name, static_cast<uint32_t>(tokens.size()));
    if (is_new) tokens.push_back(name);
    merges.push_back(top.pair);
    for (uint32_t w : top.words)
      merge(words[w].ids, top.pair, found->second, [&](Pair pair, int64_t change) {
        counts[pair] += change * words[w].count;
        if (change > 0) place(pair, w);
      });
    queue_places();
  }
  return {tokenizer_json(tokens, merges).dump() + "\n", static_cast<int64_t>(tokens.size())};
}

}  // namespace braid
