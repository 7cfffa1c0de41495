#include "data/tokenizer/bpe_tokenizer.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <new>
#include <nlohmann/json.hpp>

#include "data/json_reason.h"
#include "data/tokenizer/unicode.h"
#include "kernels/core/error.h"
#include "kernels/core/sha256.h"

namespace braid {

// ---- Encoding

namespace {

// Remembers the ids of words in constant memory: a word has one place, where it replaces what was there.
class WordMemory {
 public:
  struct Entry {
    static constexpr size_t kBytes = 30, kIds = 8;
    uint8_t bytes, num_ids;  // 0 for none
    char word[kBytes];
    uint32_t ids[kIds];
  };
  static_assert(sizeof(Entry) == 64, "one cache line");
  static_assert(std::is_trivial_v<Entry>);

  static bool can_hold(std::string_view word) { return word.size() <= Entry::kBytes; }
  Entry& place(std::string_view word) { return entries_[hash(word) >> (64 - kBits)]; }
  static bool holds(const Entry& entry, std::string_view word) {
    return entry.bytes == word.size() && std::memcmp(entry.word, word.data(), word.size()) == 0;
  }
  static void remember(Entry& entry, std::string_view word, const uint32_t* ids, size_t num_ids) {
    if (num_ids > Entry::kIds) return;
    entry.bytes = static_cast<uint8_t>(word.size());
    entry.num_ids = static_cast<uint8_t>(num_ids);
    std::memcpy(entry.word, word.data(), word.size());
    std::copy_n(ids, num_ids, entry.ids);
  }

 private:
  static constexpr int kBits = 16;
  static uint64_t hash(std::string_view word) {
    uint64_t h = word.size();
    const auto mix = [&](uint64_t value) { h = std::rotl((h ^ value) * 0x9E3779B97F4A7C15u, 29); };
    size_t at = 0;
    uint64_t value = 0;
    for (; at + 8 <= word.size(); at += 8) std::memcpy(&value, word.data() + at, 8), mix(value);
    value = 0;
    std::memcpy(&value, word.data() + at, word.size() - at);
    mix(value);
    return h * 0x9E3779B97F4A7C15u;
  }
  struct Free {
    void operator()(Entry* entries) const { std::free(entries); }
  };
  static Entry* zeros() {  // the system's pages, of which a short text touches a few
    void* entries = std::calloc(size_t{1} << kBits, sizeof(Entry));
    if (!entries) throw std::bad_alloc();
    return static_cast<Entry*>(entries);
  }
  std::unique_ptr<Entry[], Free> entries_{zeros()};
};

size_t spaces_at_end(std::string_view text) {
  size_t begin = text.size();
  while (begin > 0) {
    size_t at = begin - 1;
    while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
    if (!is_space(code_point_at(text, at).value)) break;
    begin = at;
  }
  return text.size() - begin;
}

size_t spaces_at_begin(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const CodePoint c = code_point_at(text, at);
    if (!is_space(c.value)) break;
    at += c.bytes;
  }
  return at;
}

}  // namespace

class BpeEncoder final : public TextEncoder {
 public:
  explicit BpeEncoder(const BpeTokenizer& tokenizer) : t_(tokenizer) {}

  void encode(std::string_view text, std::vector<uint32_t>& tokens) override {
    if (valid_utf8_bytes(text) != text.size()) {
      repaired_text_.clear();
      num_repaired_ += repair_utf8(text, repaired_text_);
      text = repaired_text_;
    }
    cut_out(t_.raw_added_, text, tokens, [&](std::string_view part) { encode_raw(part, tokens); });
  }
  int64_t num_repaired() const override { return num_repaired_; }

 private:
  // Calls part(text) for what lies between added tokens, and appends theirs in between.
  template <class Part>
  static void cut_out(const BpeTokenizer::AddedTokens& added, std::string_view text, std::vector<uint32_t>& tokens,
                      Part&& part) {
    size_t done = 0;
    if (!added.empty()) {
      for (size_t at = 0; at < text.size();) {
        const BpeTokenizer::AddedToken* token = added.at(text, at);
        if (!token) {
          ++at;
          continue;
        }
        size_t begin = at, end = at + token->text.size();
        at = end;
        if (token->strips_left) begin = std::max(begin - spaces_at_end(text.substr(0, begin)), done);
        if (token->strips_right) end += spaces_at_begin(text.substr(end));
        if (done < begin) part(text.substr(done, begin - done));
        tokens.push_back(token->id);
        done = end;
      }
    }
    if (done < text.size()) part(text.substr(done));
  }

  void encode_raw(std::string_view text, std::vector<uint32_t>& tokens) {
    if (t_.normalizes_ && !is_nfc(text)) {
      normal_text_.clear();
      to_nfc(text, normal_text_);
      text = normal_text_;
    }
    cut_out(t_.normalized_added_, text, tokens, [&](std::string_view part) {
      t_.pre_tokenizer_.split(part, pattern_scratch_, [&](std::string_view word) { encode_word(word, tokens); });
    });
  }

  void encode_word(std::string_view word, std::vector<uint32_t>& tokens) {
    if (!WordMemory::can_hold(word)) return merge_word(word, tokens);
    WordMemory::Entry& entry = memory_.place(word);
    if (WordMemory::holds(entry, word)) {
      tokens.insert(tokens.end(), entry.ids, entry.ids + entry.num_ids);
      return;
    }
    const size_t begin = tokens.size();
    merge_word(word, tokens);
    WordMemory::remember(entry, word, tokens.data() + begin, tokens.size() - begin);
  }

  void merge_word(std::string_view word, std::vector<uint32_t>& tokens) {
    if (t_.ignores_merges_) {
      key_.assign(word);
      if (const auto found = t_.words_.find(key_); found != t_.words_.end()) return tokens.push_back(found->second);
    }
    t_.pairs_->encode(word, pairs_scratch_, tokens);
  }

  const BpeTokenizer& t_;
  WordMemory memory_;
  PreTokenizer::Scratch pattern_scratch_;
  BytePairs::Scratch pairs_scratch_;
  std::string repaired_text_, normal_text_, key_;
  int64_t num_repaired_ = 0;
};

std::unique_ptr<TextEncoder> BpeTokenizer::encoder() const { return std::make_unique<BpeEncoder>(*this); }

std::string BpeTokenizer::decode(const std::vector<uint32_t>& tokens) const {
  std::string text;
  for (uint32_t id : tokens) {
    check<DataError>(id < tokens_.size(), "token id ", id, " is outside the vocabulary of ", tokens_.size());
    if (!tokens_[id].is_special) text += tokens_[id].bytes;
  }
  return text;
}

void BpeTokenizer::AddedTokens::add(AddedToken token) {
  auto& same = by_first_byte_[static_cast<unsigned char>(token.text[0])];
  const auto is_shorter = [&](const AddedToken& other) { return other.text.size() < token.text.size(); };
  same.insert(std::find_if(same.begin(), same.end(), is_shorter), std::move(token));
  ++count_;
}

// ---- Reading

namespace {

using Json = nlohmann::json;

constexpr int64_t kMaxId = int64_t{1} << 24;  // keeps a broken file from asking for any amount of memory

// What a document ends with, if the user does not say.
constexpr std::string_view kEndTokens[] = {
    "<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "<|eos|>", "<eos>", "</s>", "<EOT>"};

// The pattern of ByteLevel with use_regex.
constexpr const char* kByteLevelPattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

}  // namespace

struct BpeTokenizer::Reader {
  BpeTokenizer& t;
  const std::string& where;
  std::unordered_map<std::string, uint32_t> ids;  // by the token as it is written

  template <class... Parts>
  void check_that(bool ok, const Parts&... parts) const {
    check<DataError>(ok, where, ": ", parts...);
  }

  // A member of the given kind; null where it is missing or null.
  const Json* member(const Json& parent, const char* name, Json::value_t kind) const {
    if (!parent.is_object()) return nullptr;
    const auto found = parent.find(name);
    if (found == parent.end() || found->is_null()) return nullptr;
    check_that(found->type() == kind, name, " is ", found->type_name(), ", expected ", Json(kind).type_name());
    return &*found;
  }
  bool flag(const Json& parent, const char* name, bool otherwise = false) const {
    const Json* value = member(parent, name, Json::value_t::boolean);
    return value ? value->get<bool>() : otherwise;
  }
  std::string text(const Json& parent, const char* name) const {
    const Json* value = member(parent, name, Json::value_t::string);
    return value ? value->get<std::string>() : "";
  }
  int64_t id(const Json& value, const std::string& token) const {
    check_that(value.is_number_unsigned() && value.get<uint64_t>() < kMaxId, "the id of ", token, " is ", value.dump(),
               ", expected a number from 0 to ", kMaxId - 1);
    return value.get<int64_t>();
  }

  Token& token_at(int64_t id) {
    if (id >= t.vocab_size()) t.tokens_.resize(id + 1);
    return t.tokens_[id];
  }

  void read_vocabulary(const Json& model) {
    const Json* vocab = member(model, "vocab", Json::value_t::object);
    check_that(vocab, "model.vocab is missing");
    for (const auto& [name, value] : vocab->items()) {
      const int64_t at = id(value, name);
      Token& token = token_at(at);
      check_that(!token.exists, "id ", at, " has two tokens, one of them ", name);
      token.exists = true;
      if (bytes_of_token(name, token.bytes)) {
        if (t.ignores_merges_) t.words_.emplace(token.bytes, at);
      } else {
        token.bytes = name;
      }
      ids.emplace(name, static_cast<uint32_t>(at));
    }
  }

  uint32_t id_of(const std::string& token, size_t merge) const {
    const auto found = ids.find(token);
    check_that(found != ids.end(), "merge ", merge, " needs the token ", token, ", which the vocabulary does not hold");
    return found->second;
  }

  void read_merges(const Json& model) {
    const Json* merges = member(model, "merges", Json::value_t::array);
    check_that(merges, "model.merges is missing");
    std::vector<BytePairs::Merge> read;
    read.reserve(merges->size());
    for (const Json& merge : *merges) {
      std::string left, right;
      if (merge.is_string()) {
        const auto& pair = merge.get_ref<const std::string&>();
        const size_t space = pair.find(' ');
        check_that(space != pair.npos && pair.find(' ', space + 1) == pair.npos, "merge ", read.size(), " is '", pair,
                   "', expected two tokens with a space between them");
        left = pair.substr(0, space), right = pair.substr(space + 1);
      } else {
        check_that(merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string(), "merge ",
                   read.size(), " is not a pair of tokens");
        left = merge[0], right = merge[1];
      }
      check_that(!left.empty() && !right.empty(), "merge ", read.size(), " has an empty token");
      read.push_back({id_of(left, read.size()), id_of(right, read.size()), id_of(left + right, read.size())});
    }
    std::array<uint32_t, 256> byte_ids{};
    for (int b = 0; b < 256; ++b) {
      std::string name;
      append_code_point(name, byte_characters()[b]);
      const auto found = ids.find(name);
      // These bytes are in no UTF-8.
      const bool can_occur = b != 0xC0 && b != 0xC1 && b < 0xF5;
      check_that(found != ids.end() || !can_occur, "the vocabulary has no token for byte ", b,
                 ", so it is not a byte-level vocabulary, or it cannot write every text");
      if (found != ids.end()) byte_ids[b] = found->second;
    }
    t.pairs_ = std::make_unique<BytePairs>(byte_ids, read);
  }

  void read_model(const Json& root) {
    const Json* model = member(root, "model", Json::value_t::object);
    check_that(model, "model is missing");
    // Files of old name no type.
    const std::string type = text(*model, "type");
    check_that(type == "BPE" || (type.empty() && model->contains("merges")), "model.type is '", type,
               "', only BPE is understood");
    for (const char* name : {"continuing_subword_prefix", "end_of_word_suffix"})
      check_that(text(*model, name).empty(), "model.", name, " is not understood");
    check_that(!flag(*model, "byte_fallback"), "model.byte_fallback is not understood");
    check_that(!model->contains("dropout") || (*model)["dropout"].is_null() || (*model)["dropout"] == 0,
               "model.dropout makes the tokens of a text random");
    t.ignores_merges_ = flag(*model, "ignore_merges");
    read_vocabulary(*model);
    read_merges(*model);
  }

  void read_normalizer(const Json& normalizer) {
    const std::string type = text(normalizer, "type");
    if (type == "Sequence") {
      if (const Json* parts = member(normalizer, "normalizers", Json::value_t::array))
        for (const Json& part : *parts) read_normalizer(part);
      return;
    }
    check_that(type == "NFC", "normalizer ", type, " is not understood, only NFC is");
    t.normalizes_ = true;
  }

  void read_pre_tokenizer(const Json& step) {
    const std::string type = text(step, "type");
    if (type == "Sequence") {
      const Json* parts = member(step, "pretokenizers", Json::value_t::array);
      check_that(parts, "pre_tokenizer.pretokenizers is missing");
      for (const Json& part : *parts) {
        check_that(!is_byte_level_, "pre_tokenizer has something behind ByteLevel");
        read_pre_tokenizer(part);
      }
    } else if (type == "Split") {
      const Json* pattern = member(step, "pattern", Json::value_t::object);
      check_that(pattern && pattern->contains("Regex"), "pre_tokenizer Split has no pattern.Regex");
      const std::string behavior = text(step, "behavior");
      const bool inverts = flag(step, "invert");
      const bool drops = behavior == "Removed" && inverts;
      check_that(drops || behavior == "Isolated", "pre_tokenizer Split with behavior ", behavior,
                 inverts ? " and invert" : "", " is not understood");
      t.pre_tokenizer_.add(where, text(*pattern, "Regex"),
                           drops ? PreTokenizer::Between::kDrop : PreTokenizer::Between::kKeep);
    } else if (type == "Digits") {
      t.pre_tokenizer_.add(where, flag(step, "individual_digits") ? "\\p{N}" : "\\p{N}+", PreTokenizer::Between::kKeep);
    } else {
      check_that(type == "ByteLevel", "pre_tokenizer ", type, " is not understood");
      check_that(!flag(step, "add_prefix_space", true),
                 "pre_tokenizer ByteLevel with add_prefix_space is not understood");
      if (flag(step, "use_regex", true)) t.pre_tokenizer_.add(where, kByteLevelPattern, PreTokenizer::Between::kKeep);
      is_byte_level_ = true;
    }
  }

  void read_added_tokens(const Json& root) {
    const Json* added = member(root, "added_tokens", Json::value_t::array);
    if (!added) return;
    for (const Json& entry : *added) {
      check_that(entry.is_object() && entry.contains("id"), "an entry of added_tokens has no id");
      AddedToken token;
      token.text = text(entry, "content");
      if (token.text.empty()) continue;
      const int64_t at = id(entry["id"], token.text);
      const auto same = ids.emplace(token.text, static_cast<uint32_t>(at)).first;
      check_that(same->second == at, "added token ", token.text, " has id ", at, ", but ", same->second,
                 " in the vocabulary");
      check_that(!flag(entry, "single_word"), "added token ", token.text, ": single_word is not understood");
      token.id = static_cast<uint32_t>(at);
      token.strips_left = flag(entry, "lstrip");
      token.strips_right = flag(entry, "rstrip");
      token.is_special = flag(entry, "special");
      Token& stored = token_at(at);
      if (stored.exists && same->first != token.text) check_that(false, "id ", at, " has two tokens");
      stored = {token.text, true, token.is_special};
      const bool is_normalized = flag(entry, "normalized", !token.is_special);
      if (is_normalized && t.normalizes_ && !is_nfc(token.text)) {
        std::string normal;
        to_nfc(token.text, normal);
        token.text = std::move(normal);
      }
      (is_normalized ? t.normalized_added_ : t.raw_added_).add(std::move(token));
    }
  }

  void choose_end(const std::string& asked) {
    int64_t number = -1;
    if (asked.starts_with('#') &&
        std::from_chars(asked.data() + 1, asked.data() + asked.size(), number).ec == std::errc()) {
      check_that(number >= 0 && number < t.vocab_size() && t.tokens_[number].exists, "it has no token ", number,
                 " to end documents with");
      t.end_of_document_ = number;
      t.tokens_[number].is_special = true;
      return;
    }
    const auto found = asked.empty()
                           ? std::find_if(std::begin(kEndTokens), std::end(kEndTokens),
                                          [&](std::string_view name) { return ids.contains(std::string(name)); })
                           : std::end(kEndTokens);
    const std::string name = found != std::end(kEndTokens) ? std::string(*found) : asked;
    check_that(!name.empty(), "none of its tokens is known to end a document; name one with --end-of-document");
    const auto token = ids.find(name);
    check_that(token != ids.end(), "it has no token ", name, " to end documents with");
    t.end_of_document_ = token->second;
    t.tokens_[token->second].is_special = true;
  }

  void read(const Json& root, const std::string& end_of_document) {
    check_that(root.is_object(), "it is not an object");
    read_model(root);
    if (const Json* normalizer = member(root, "normalizer", Json::value_t::object)) read_normalizer(*normalizer);
    const Json* pre_tokenizer = member(root, "pre_tokenizer", Json::value_t::object);
    check_that(pre_tokenizer, "pre_tokenizer is missing");
    read_pre_tokenizer(*pre_tokenizer);
    check_that(is_byte_level_, "pre_tokenizer has no ByteLevel: only byte-level vocabularies are understood");
    read_added_tokens(root);
    choose_end(end_of_document);
  }

  bool is_byte_level_ = false;
};

BpeTokenizer::BpeTokenizer(const std::string& where, std::string json, const std::string& end_of_document)
    : file_(std::move(json)), digest_(sha256(file_)) {
  Json root;
  try {
    root = Json::parse(file_);
  } catch (const Json::exception& e) {
    throw DataError(concat(where, ": is not JSON: ", json_reason(e)));
  }
  Reader{*this, where, {}}.read(root, end_of_document);
}

}  // namespace braid
