// Texts of any bytes, the first of which says by which tokenizer: an encoder that remembers gives the ids that merging
// pair by pair gives, and they stand for the text.
#include <array>
#include <iterator>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <unordered_map>

#include "data/tokenizer/bpe_tokenizer.h"
#include "data/tokenizer/unicode.h"
#include "kernels/core/error.h"
#include "tests/fuzz/fuzz_target.h"

namespace braid::fuzz {
namespace {

constexpr size_t kLongest = 320;  // bytes of a text; the reference takes the square of a word's

// Byte-pair encoding as it is told: the pair of lowest rank merges wherever it stands, from the left, until none does.
// Reads the file for itself; words and normal forms are the library's.
class Reference {
 public:
  explicit Reference(const std::string& file) {
    const auto root = nlohmann::json::parse(file);
    const auto& model = root["model"];
    for (const auto& [token, id] : model["vocab"].items()) ids_[token] = id;
    for (const auto& merge : model["merges"]) {
      const auto [left, right] = merge.get<std::pair<std::string, std::string>>();
      const auto rank = static_cast<int>(merges_.size());
      merges_[pair_of(ids_.at(left), ids_.at(right))] = {rank, ids_.at(left + right)};
    }
    for (size_t byte = 0; byte < 256; ++byte) {
      std::string name;
      append_code_point(name, byte_characters()[byte]);
      if (const auto found = ids_.find(name); found != ids_.end()) byte_ids_[byte] = found->second;
    }
    whole_words_ = model.value("ignore_merges", false);
    normalizes_ = !root["normalizer"].is_null();
    for (const auto& token : root["added_tokens"]) added_.push_back(token["content"]);
    add_steps(root["pre_tokenizer"]);
  }

  // False, without ids, where an added token may be in the text, which is not for us.
  bool encode(std::string_view bytes, std::vector<uint32_t>& ids) {
    std::string text, normal;
    repair_utf8(bytes, text);
    if (normalizes_) to_nfc(text, normal);
    const std::string& read = normalizes_ ? normal : text;
    for (const std::string& token : added_)
      if (text.find(token) != text.npos || read.find(token) != read.npos) return false;
    words_.split(read, scratch_, [&](std::string_view word) { encode_word(word, ids); });
    return true;
  }

 private:
  void add_steps(const nlohmann::json& step) {
    const std::string type = step["type"];
    if (type == "Sequence")
      for (const auto& part : step["pretokenizers"]) add_steps(part);
    else if (type == "Split")
      words_.add("fuzz", step["pattern"]["Regex"],
                 step["behavior"] == "Removed" ? PreTokenizer::Between::kDrop : PreTokenizer::Between::kKeep);
    else if (type == "Digits")
      words_.add("fuzz", step["individual_digits"] ? "\\p{N}" : "\\p{N}+", PreTokenizer::Between::kKeep);
    else if (step.value("use_regex", true))  // GPT-2's
      words_.add("fuzz", R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)",
                 PreTokenizer::Between::kKeep);
  }

  static uint64_t pair_of(uint32_t left, uint32_t right) { return uint64_t{left} << 32 | right; }

  void encode_word(std::string_view word, std::vector<uint32_t>& ids) {
    if (whole_words_) {
      std::string name;
      for (const char c : word) append_code_point(name, byte_characters()[static_cast<unsigned char>(c)]);
      if (const auto found = ids_.find(name); found != ids_.end()) return ids.push_back(found->second);
    }
    std::vector<uint32_t>& parts = parts_;
    parts.clear();
    for (const char c : word) parts.push_back(byte_ids_[static_cast<unsigned char>(c)]);
    while (true) {
      size_t best = parts.size();
      Merge least = {INT32_MAX, 0};
      for (size_t i = 0; i + 1 < parts.size(); ++i) {
        const auto found = merges_.find(pair_of(parts[i], parts[i + 1]));
        if (found != merges_.end() && found->second.rank < least.rank) least = found->second, best = i;
      }
      if (best == parts.size()) break;
      parts[best] = least.merged;
      parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    }
    ids.insert(ids.end(), parts.begin(), parts.end());
  }

  struct Merge {
    int rank;
    uint32_t merged;
  };
  std::unordered_map<std::string, uint32_t> ids_;
  std::unordered_map<uint64_t, Merge> merges_;
  std::array<uint32_t, 256> byte_ids_{};
  std::vector<uint32_t> parts_;
  std::vector<std::string> added_;
  PreTokenizer words_;
  PreTokenizer::Scratch scratch_;
  bool whole_words_ = false, normalizes_ = false;
};

struct Tried {
  explicit Tried(const std::string& name)
      : file(test_data("tokenizers/" + name + ".json")),
        tokenizer(name, file, ""),
        encoder(tokenizer.encoder()),
        reference(file) {}
  std::string file;
  BpeTokenizer tokenizer;
  std::unique_ptr<TextEncoder> encoder;
  Reference reference;
};

}  // namespace

std::vector<std::string> seeds() {
  // Words too long to look at all ranks, whose merges get in each other's way.
  const std::string tensors =
      "tensorightionstensoringtensorattentionthereoftensorsightensorenteringensordistensedtensorialightensoringheight";
  return {
      "a" + tensors,
      "b" + tensors,
      "c" + tensors + std::string(97, ' ') + "the",
      "It's 12345 words, don't you'll THEY'RE\n\n  and\tmore   \r\n",
      "\u6f22\u5b57\u304b\u306a \u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac "
      "\u0420\u0443\u0441\u0441\u043a\u0438\u0439 \u05e2\u05d1\u05e8\u05d9\u05ea \u0e44\u0e17\u0e22 \ud55c\uad6d\uc5b4",
      "e\u0301a\u0323\u0301 \U0001F469\u200d\U0001F467 \U0001F1E9\U0001F1EA <|endoftext|><think> \xff\xc3\xe2\x82 "
      "\u180e\u3000",
      std::string(120, 'a') + std::string(60, ' ') + "if (x->y[3] != 0x7f) { return; }  // " + std::string(100, '=')};
}

void take(std::string_view bytes) {
  if (bytes.empty() || bytes.size() > kLongest) return;
  static Tried all[] = {Tried("chained"), Tried("gpt4"), Tried("qwen")};
  Tried& t = all[static_cast<unsigned char>(bytes[0]) % std::size(all)];
  std::vector<uint32_t> ids, expected;
  t.encoder->encode(bytes, ids);
  if (!t.reference.encode(bytes, expected)) t.encoder->encode(bytes, expected);
  if (ids != expected) throw std::logic_error("other ids than merging pair by pair gives");
  for (const uint32_t id : ids)
    if (id >= t.tokenizer.vocab_size()) throw std::logic_error("an id outside the vocabulary");
  std::string text;
  repair_utf8(bytes, text);
  if (&t != &all[2] && text.find("<|endoftext|>") == text.npos && t.tokenizer.decode(ids) != text)
    throw std::logic_error("decoded, it is another text");
}

}  // namespace braid::fuzz
