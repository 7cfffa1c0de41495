#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace braid {

// A code point and the bytes it takes; 0 bytes where text[at] does not begin a character.
struct CodePoint {
  uint32_t value = 0;
  int bytes = 0;
};
CodePoint code_point_at(std::string_view text, size_t at);
void append_code_point(std::string& text, uint32_t code_point);
// White_Space of Unicode, 25 code points.
bool is_space(uint32_t code_point);

// Bytes in front of the first that is not UTF-8; text.size() if there is none.
size_t valid_utf8_bytes(std::string_view text);
// Puts U+FFFD where the text is not UTF-8, one for every longest broken beginning of a character (Unicode, table 3-8;
// Python's errors="replace"). Returns how many.
int64_t repair_utf8(std::string_view text, std::string& out);

// Characters younger than Unicode 14, which the patterns' library may not know, and the same text with an older one of
// the same class and length in place of each.
bool has_young_characters(std::string_view text);
void replace_young_characters(std::string_view text, std::string& out);

// Normalisation form C of valid UTF-8, as the `tokenizers` package computes it: by the tables of Unicode 9, so that
// marks which are younger stay where they stand.
bool is_nfc(std::string_view text);  // false: perhaps not
void to_nfc(std::string_view text, std::string& out);

}  // namespace braid
