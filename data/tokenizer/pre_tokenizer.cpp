#include "data/tokenizer/pre_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <new>

#include "data/tokenizer/unicode.h"
#include "kernels/core/error.h"

namespace braid {
namespace {

// White_Space. PCRE2's own \s also takes U+180E.
constexpr std::string_view kSpaces =
    "\\x09-\\x0d\\x20\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}";

// An expression for Oniguruma as one for PCRE2 of the same meaning.
class Translation {
 public:
  Translation(const std::string& where, std::string_view in) : where_(where), in_(in) {
    while (at_ < in_.size()) next();
    check<DataError>(!in_class_, where_, ": the pattern has a [ without its ]");
  }
  const std::string& out() const { return out_; }

 private:
  [[noreturn]] void refuse(std::string_view what) const {
    throw DataError(concat(where_, ": the pattern uses ", what, ", which is not understood here: ", in_));
  }

  void next() {
    const char c = in_[at_];
    if (c == '\\') return escape();
    if (in_class_) {
      if (c == '[') refuse("a class inside a class");
      if (in_.substr(at_, 2) == "&&") refuse("an intersection of classes");
      if (c == ']' && at_ > class_begin_) in_class_ = false;
    } else if (c == '[') {
      in_class_ = true;
      out_ += c;
      if (++at_ < in_.size() && in_[at_] == '^') out_ += in_[at_++];
      class_begin_ = at_;
      if (at_ < in_.size() && in_[at_] == ']') refuse("a class that begins with ]");
      return;
    } else if (c == '(' && in_.substr(at_, 2) == "(?") {
      group();
      return;
    } else if (c == '(' && in_.substr(at_, 2) == "(*") {
      refuse("(*");
    } else if (c == '}' && in_.substr(at_, 2) == "}+") {
      refuse("}+");  // possessive for PCRE2, repeated for Oniguruma
    }
    out_ += c;
    ++at_;
  }

  void group() {
    for (std::string_view known : {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:"})
      if (in_.substr(at_).starts_with(known)) {
        out_ += known;
        at_ += known.size();
        return;
      }
    refuse(in_.substr(at_, 3));
  }

  void escape() {
    if (at_ + 1 == in_.size()) refuse("a \\ at its end");
    const char c = in_[at_ + 1];
    const auto is_word = [](char l) {
      return (l >= '0' && l <= '9') || (l >= 'A' && l <= 'Z') || (l >= 'a' && l <= 'z');
    };
    size_t bytes = 2;
    if (c == 's') {
      out_ += in_class_ ? std::string(kSpaces) : concat('[', kSpaces, ']');
    } else if (c == 'S' && !in_class_) {
      out_ += concat("[^", kSpaces, ']');
    } else if (c == 'p' || c == 'P') {
      const size_t end = in_.find('}', at_);
      if (in_.substr(at_ + 2, 1) != "{" || end == in_.npos) refuse("\\p without a {name}");
      bytes = end + 1 - at_;
      out_ += in_.substr(at_, bytes);
    } else if (c == 'x') {
      if (in_.substr(at_ + 2, 1) != "{") refuse("\\x without braces");
      out_ += "\\x";
    } else if (c == 'r' || c == 'n' || c == 't' || c == 'f' || c == 'd' || !is_word(c)) {
      out_ += in_.substr(at_, 2);
    } else {
      refuse(in_.substr(at_, 2));
    }
    at_ += bytes;
  }

  const std::string& where_;
  std::string_view in_;
  std::string out_;
  size_t at_ = 0, class_begin_ = 0;
  bool in_class_ = false;
};

std::string pcre2_reason(int error) {
  PCRE2_UCHAR text[256];
  pcre2_get_error_message(error, text, sizeof text);
  return reinterpret_cast<const char*>(text);
}

}  // namespace

struct PreTokenizer::Scratch::State {
  static constexpr size_t kFirstStack = 32 << 10, kLargestStack = 64 << 20;
  State() {
    if (!match || !context || !stack) throw std::bad_alloc();
    pcre2_jit_stack_assign(context, nullptr, stack);
  }
  ~State() {
    pcre2_match_data_free(match);
    pcre2_match_context_free(context);
    pcre2_jit_stack_free(stack);
  }
  pcre2_match_data* match = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  std::string seen;
  pcre2_jit_stack* stack = pcre2_jit_stack_create(kFirstStack, kLargestStack, nullptr);
};

PreTokenizer::Scratch::Scratch() : state_(std::make_unique<State>()) {}
PreTokenizer::Scratch::~Scratch() = default;

void PreTokenizer::add(const std::string& where, const std::string& pattern, Between between) {
  check<DataError>(valid_utf8_bytes(pattern) == pattern.size(), where, ": the pattern is not UTF-8");
  const Translation translated(where, pattern);
  int error = 0;
  PCRE2_SIZE at = 0;
  const std::string& out = translated.out();
  pcre2_code* code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(out.data()), out.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error, &at, nullptr);
  check<DataError>(code, where, ": the pattern is wrong: ", pcre2_reason(error), " in ", pattern);
  std::shared_ptr<void> owned(code, [](void* p) { pcre2_code_free(static_cast<pcre2_code*>(p)); });
  uint32_t matches_empty = 0;
  pcre2_pattern_info(code, PCRE2_INFO_MATCHEMPTY, &matches_empty);
  check<DataError>(!matches_empty, where, ": the pattern can match nothing at all: ", pattern);
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // where there is no machine code, PCRE2 interprets
  steps_.push_back({std::move(owned), between});
}

std::string_view PreTokenizer::as_seen(std::string_view text, Scratch& scratch) {
  if (!has_young_characters(text)) return text;
  replace_young_characters(text, scratch.state_->seen);
  return scratch.state_->seen;
}

PreTokenizer::Match PreTokenizer::find(const Step& step, std::string_view text, size_t from, Scratch& scratch) {
  Scratch::State& s = *scratch.state_;
  const int found =
      pcre2_match(static_cast<const pcre2_code*>(step.code.get()), reinterpret_cast<PCRE2_SPTR>(text.data()),
                  text.size(), from, PCRE2_NO_UTF_CHECK, s.match, s.context);
  if (found == PCRE2_ERROR_NOMATCH) return {text.size(), text.size()};
  check<DataError>(found >= 0, "the tokenizer's pattern stopped: ", found < 0 ? pcre2_reason(found) : "");
  const PCRE2_SIZE* at = pcre2_get_ovector_pointer(s.match);
  return {at[0], at[1]};
}

}  // namespace braid
