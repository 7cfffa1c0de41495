#include "data/tokenizer/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <new>
#include <vector>

#include "data/tokenizer/unicode_tables.h"

namespace braid {
namespace {

unsigned char byte_at(std::string_view text, size_t i) { return static_cast<unsigned char>(text[i]); }

bool is_ascii8(std::string_view text, size_t at) {
  uint64_t word;
  std::memcpy(&word, text.data() + at, sizeof word);
  return (word & 0x8080808080808080u) == 0;
}

// Length of the character at `at`, or minus the length of its longest valid beginning (at least 1).
int character_bytes(std::string_view text, size_t at) {
  const unsigned lead = byte_at(text, at);
  if (lead < 0x80) return 1;
  if (lead < 0xC2 || lead > 0xF4) return -1;
  const int bytes = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte excludes overlong forms, surrogates and what is beyond U+10FFFF.
  const unsigned low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const unsigned high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  for (int i = 1; i < bytes; ++i) {
    if (at + i >= text.size()) return -i;
    const unsigned byte = byte_at(text, at + i);
    if (i == 1 ? byte < low || byte > high : (byte & 0xC0) != 0x80) return -i;
  }
  return bytes;
}

// What a code point means for normalisation form C.
enum class Role : uint8_t {
  kStable,  // a starter that neither changes nor joins what stands in front of it
  kChanges,
  kYoung,  // not in Unicode 9
};

// No code point from U+30000 on takes part.
constexpr uint32_t kTableEnd = 0x30000;

std::vector<Role> make_roles() {
  std::vector<Role> roles(kTableEnd, Role::kStable);
  for (uint32_t c = 0; c < kTableEnd; ++c) {
    const utf8proc_property_t* property = utf8proc_get_property(static_cast<utf8proc_int32_t>(c));
    if (property->combining_class != 0) roles[c] = Role::kChanges;
    utf8proc_int32_t parts[8];
    int last_class = 0;
    const auto n = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c), parts, 8, UTF8PROC_DECOMPOSE, &last_class);
    if (n <= 1 && static_cast<uint32_t>(parts[0]) == c) continue;
    // The last part of a decomposition may join what stands in front of it, and the
    // whole may be one that form C takes apart.
    for (utf8proc_ssize_t i = 1; i < n; ++i) roles[parts[i]] = Role::kChanges;
    utf8proc_int32_t composed[8];
    std::copy_n(parts, n, composed);
    const auto m =
        utf8proc_normalize_utf32(composed, n, static_cast<utf8proc_option_t>(UTF8PROC_COMPOSE | UTF8PROC_STABLE));
    if (m != 1 || static_cast<uint32_t>(composed[0]) != c) roles[c] = Role::kChanges;
  }
  for (const CodePointRange& range : kAfterUnicode9)
    for (uint32_t c = range.first; c <= range.last; ++c) roles[c] = Role::kYoung;
  return roles;
}

Role role(uint32_t c) {
  static const std::vector<Role> roles = make_roles();
  return c < kTableEnd ? roles[c] : Role::kStable;
}

void append_nfc(std::string_view text, std::string& out) {
  utf8proc_uint8_t* normal = nullptr;
  const auto bytes =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()), static_cast<utf8proc_ssize_t>(text.size()),
                   &normal, static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  if (bytes < 0) throw std::bad_alloc();  // all else is excluded by valid UTF-8
  out.append(reinterpret_cast<const char*>(normal), static_cast<size_t>(bytes));
  std::free(normal);
}

// The older character in place of a young one; 0 for all others.
uint32_t older_character(uint32_t c) {
  static const std::vector<uint32_t> older = [] {
    std::vector<uint32_t> table(std::end(kAfterUnicode14)[-1].last + 1);
    for (const YoungCharacters& young : kAfterUnicode14)
      std::fill(table.begin() + young.first, table.begin() + young.last + 1, young.older);
    return table;
  }();
  return c < older.size() ? older[c] : 0;
}

// Calls found(at, character) for young characters, the first first, until it returns false.
template <class Found>
void find_young(std::string_view text, Found&& found) {
  for (size_t at = 0; at < text.size();) {
    if (at + 8 <= text.size() && is_ascii8(text, at)) {
      at += 8;
      continue;
    }
    const unsigned lead = byte_at(text, at);
    if (lead < 0xE0) {  // none has less than three bytes
      at += lead < 0x80 ? 1 : 2;
      continue;
    }
    const CodePoint c = code_point_at(text, at);
    if (const uint32_t older = older_character(c.value); older != 0 && !found(at, older)) return;
    at += c.bytes;
  }
}

}  // namespace

CodePoint code_point_at(std::string_view text, size_t at) {
  const int bytes = character_bytes(text, at);
  if (bytes < 0) return {};
  const uint32_t lead = byte_at(text, at);
  if (bytes == 1) return {lead, 1};
  uint32_t value = lead & (0xFFu >> (bytes + 1));
  for (int i = 1; i < bytes; ++i) value = value << 6 | (byte_at(text, at + i) & 0x3F);
  return {value, bytes};
}

void append_code_point(std::string& text, uint32_t c) {
  const auto put = [&](uint32_t byte) { text += static_cast<char>(byte); };
  if (c < 0x80) return put(c);
  if (c < 0x800) put(0xC0 | c >> 6);
  else if (c < 0x10000) put(0xE0 | c >> 12), put(0x80 | (c >> 6 & 0x3F));
  else put(0xF0 | c >> 18), put(0x80 | (c >> 12 & 0x3F)), put(0x80 | (c >> 6 & 0x3F));
  put(0x80 | (c & 0x3F));
}

bool is_space(uint32_t c) {
  return (c >= 0x9 && c <= 0xD) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) ||
         c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

size_t valid_utf8_bytes(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    if (at + 8 <= text.size() && is_ascii8(text, at)) {
      at += 8;
      continue;
    }
    const int bytes = character_bytes(text, at);
    if (bytes < 0) return at;
    at += bytes;
  }
  return at;
}

int64_t repair_utf8(std::string_view text, std::string& out) {
  int64_t repaired = 0;
  while (!text.empty()) {
    const size_t valid = valid_utf8_bytes(text);
    out.append(text.substr(0, valid));
    text.remove_prefix(valid);
    if (text.empty()) break;
    append_code_point(out, 0xFFFD);
    text.remove_prefix(static_cast<size_t>(-character_bytes(text, 0)));
    ++repaired;
  }
  return repaired;
}

bool has_young_characters(std::string_view text) {
  bool has = false;
  find_young(text, [&](size_t, uint32_t) {
    has = true;
    return false;
  });
  return has;
}

void replace_young_characters(std::string_view text, std::string& out) {
  out = text;
  std::string character;
  find_young(text, [&](size_t at, uint32_t older) {
    character.clear();
    append_code_point(character, older);
    out.replace(at, character.size(), character);
    return true;
  });
}

bool is_nfc(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    if (at + 8 <= text.size() && is_ascii8(text, at)) {
      at += 8;
      continue;
    }
    if (byte_at(text, at) < 0xCC) {  // below U+0300 nothing changes
      at += byte_at(text, at) < 0x80 ? 1 : 2;
      continue;
    }
    const CodePoint c = code_point_at(text, at);
    if (role(c.value) == Role::kChanges) return false;
    at += c.bytes;
  }
  return true;
}

void to_nfc(std::string_view text, std::string& out) {
  size_t begin = 0;       // of what is not yet written
  size_t last_start = 0;  // the newest place where a piece may begin
  for (size_t at = 0; at < text.size();) {
    CodePoint c = code_point_at(text, at);
    Role r = role(c.value);
    if (r != Role::kChanges) {
      last_start = r == Role::kStable ? at : at + c.bytes;
      at += c.bytes;
      continue;
    }
    // A piece: the starter in front, and all that may change or join.
    out.append(text.substr(begin, last_start - begin));
    size_t end = at;
    while (end < text.size()) {
      c = code_point_at(text, end);
      if (role(c.value) != Role::kChanges) break;
      end += c.bytes;
    }
    append_nfc(text.substr(last_start, end - last_start), out);
    begin = last_start = at = end;
  }
  out.append(text.substr(begin));
}

}  // namespace braid
