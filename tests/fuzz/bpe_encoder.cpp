// Texts of any bytes: an encoder that remembers gives the ids of one that is new, and they stand for the text.
#include <stdexcept>

#include "data/tokenizer/bpe_tokenizer.h"
#include "data/tokenizer/unicode.h"
#include "kernels/core/error.h"
#include "tests/fuzz/fuzz_target.h"

namespace braid::fuzz {
namespace {

const BpeTokenizer& tokenizer(int which) {
  static const BpeTokenizer all[] = {{"chained", test_data("tokenizers/chained.json"), ""},
                                     {"gpt4", test_data("tokenizers/gpt4.json"), ""},
                                     {"qwen", test_data("tokenizers/qwen.json"), ""}};
  return all[which];
}

}  // namespace

std::vector<std::string> seeds() {
  return {"It's 12345 words, don't you'll THEY'RE\n\n  and\tmore   \r\n",
          "\u6f22\u5b57\u304b\u306a \u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac \u0420\u0443\u0441\u0441\u043a\u0438\u0439 \u05e2\u05d1\u05e8\u05d9\u05ea \u0e44\u0e17\u0e22 \ud55c\uad6d\uc5b4",
          "e\u0301a\u0323\u0301 \U0001F469\u200d\U0001F467 \U0001F1E9\U0001F1EA <|endoftext|><think> \xff\xc3\xe2\x82 \u180e\u3000",
          std::string(120, 'a') + std::string(60, ' ') + "if (x->y[3] != 0x7f) { return; }  // " + std::string(100, '=')};
}

void take(std::string_view bytes) {
  for (const int which : {0, 1, 2}) {
    const BpeTokenizer& t = tokenizer(which);
    static thread_local std::unique_ptr<TextEncoder> experienced[3];
    if (!experienced[which]) experienced[which] = t.encoder();
    std::vector<uint32_t> ids;
    experienced[which]->encode(bytes, ids);
    if (ids != t.encode(bytes)) throw std::logic_error("an encoder that remembers gives other ids");
    for (const uint32_t id : ids)
      if (id >= t.vocab_size()) throw std::logic_error("an id outside the vocabulary");
    std::string text;
    repair_utf8(bytes, text);
    if (which < 2 && text.find("<|endoftext|>") == text.npos && t.decode(ids) != text) throw std::logic_error("decoded, it is another text");
  }
}

}  // namespace braid::fuzz
