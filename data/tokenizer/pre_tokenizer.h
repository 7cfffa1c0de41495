#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace braid {

// Cuts a text into words by regular expressions, one after the other: each cuts what the one before has left. A word is
// a match, or what lies between two matches. The expressions are those of a tokenizer.json, written for Oniguruma, and
// run on PCRE2 (compiled to machine code where it can); what the two would read differently is translated or refused.
class PreTokenizer {
 public:
  enum class Between { kKeep, kDrop };
  // Errors: DataError naming `where` and what is wrong.
  void add(const std::string& where, const std::string& pattern, Between between);
  bool empty() const { return steps_.empty(); }

  // What one thread needs to run the expressions.
  class Scratch {
   public:
    Scratch();
    ~Scratch();
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

   private:
    friend class PreTokenizer;
    struct State;
    std::unique_ptr<State> state_;
  };

  // Calls word(std::string_view) for one word of the valid UTF-8 text after the other.
  // Errors: DataError if a match takes more memory than it may.
  template <class Word>
  void split(std::string_view text, Scratch& scratch, Word&& word) const {
    const std::string_view seen = as_seen(text, scratch);
    auto original = [&](std::string_view part) { word(text.substr(part.data() - seen.data(), part.size())); };
    split_from(0, seen, scratch, original);
  }

 private:
  struct Step {
    std::shared_ptr<void> code;
    Between between;
  };
  struct Match {
    size_t begin, end;
  };
  // The text as the expressions are to see it, of the same length.
  static std::string_view as_seen(std::string_view text, Scratch& scratch);
  // The first match at or behind `from`; {text.size(), text.size()} if there is none.
  static Match find(const Step& step, std::string_view text, size_t from, Scratch& scratch);

  template <class Word>
  void split_from(size_t number, std::string_view text, Scratch& scratch, Word& word) const {
    if (number == steps_.size()) return word(text);
    const Step& step = steps_[number];
    for (size_t at = 0; at < text.size();) {
      const Match match = find(step, text, at, scratch);
      if (at < match.begin && step.between == Between::kKeep)
        split_from(number + 1, text.substr(at, match.begin - at), scratch, word);
      if (match.begin < match.end)
        split_from(number + 1, text.substr(match.begin, match.end - match.begin), scratch, word);
      at = match.end;
    }
  }

  std::vector<Step> steps_;
};

}  // namespace braid
