#include "data/tokenizer/byte_pairs.h"

#include <algorithm>
#include <bit>
#include <functional>

#include "data/tokenizer/unicode.h"

namespace braid {
namespace {

constexpr uint64_t kNoPair = UINT64_MAX;
constexpr size_t kShortWord = 96;  // bytes up to which looking at all ranks is faster than a heap

uint64_t pair_key(uint32_t left, uint32_t right) { return uint64_t{left} << 32 | right; }
uint64_t mixed(uint64_t key) { return key * 0x9E3779B97F4A7C15u ^ (key * 0x9E3779B97F4A7C15u) >> 29; }

}  // namespace

const std::array<uint32_t, 256>& byte_characters() {
  static const std::array<uint32_t, 256> characters = [] {
    std::array<uint32_t, 256> c{};
    uint32_t next = 0x100;
    for (uint32_t b = 0; b < 256; ++b) {
      const bool is_itself = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      c[b] = is_itself ? b : next++;
    }
    return c;
  }();
  return characters;
}

bool bytes_of_token(std::string_view token, std::string& bytes) {
  static const std::array<int16_t, 0x144> byte_of = [] {
    std::array<int16_t, 0x144> of;
    of.fill(-1);
    for (int b = 0; b < 256; ++b) of[byte_characters()[b]] = static_cast<int16_t>(b);
    return of;
  }();
  bytes.clear();
  for (size_t at = 0; at < token.size();) {
    const CodePoint c = code_point_at(token, at);
    if (c.bytes == 0 || c.value >= byte_of.size() || byte_of[c.value] < 0) return false;
    bytes += static_cast<char>(byte_of[c.value]);
    at += c.bytes;
  }
  return true;
}

BytePairs::BytePairs(const std::array<uint32_t, 256>& byte_ids, const std::vector<Merge>& merges)
    : byte_ids_(byte_ids) {
  const size_t size = std::bit_ceil(std::max<size_t>(2 * merges.size(), 16));
  slots_.assign(size, {kNoPair, 0, 0});
  shift_ = 64 - std::countr_zero(size);
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const uint64_t key = pair_key(merges[rank].left, merges[rank].right);
    size_t at = mixed(key) >> shift_;
    while (slots_[at].pair != kNoPair && slots_[at].pair != key) at = (at + 1) & (size - 1);
    slots_[at] = {key, static_cast<uint32_t>(rank), merges[rank].merged};
  }
}

const BytePairs::Slot* BytePairs::find(uint32_t left, uint32_t right) const {
  const uint64_t key = pair_key(left, right);
  for (size_t at = mixed(key) >> shift_;; at = (at + 1) & (slots_.size() - 1)) {
    if (slots_[at].pair == key) return &slots_[at];
    if (slots_[at].pair == kNoPair) return nullptr;
  }
}

void BytePairs::encode(std::string_view word, Scratch& scratch, std::vector<uint32_t>& tokens) const {
  if (word.size() <= kShortWord) encode_short(word, tokens);
  else encode_long(word, scratch, tokens);
}

void BytePairs::encode_short(std::string_view word, std::vector<uint32_t>& tokens) const {
  std::array<uint32_t, kShortWord> ids, ranks;  // ranks[i] of the pair i, i + 1
  size_t n = word.size();
  for (size_t i = 0; i < n; ++i) ids[i] = byte_ids_[static_cast<unsigned char>(word[i])];
  for (size_t i = 0; i + 1 < n; ++i) ranks[i] = rank(ids[i], ids[i + 1]);
  while (n > 1) {
    uint32_t lowest = kNoRank;
    for (size_t i = 0; i + 1 < n; ++i) lowest = std::min(lowest, ranks[i]);
    if (lowest == kNoRank) break;
    const size_t i = std::find(ranks.begin(), ranks.begin() + n - 1, lowest) - ranks.begin();
    ids[i] = find(ids[i], ids[i + 1])->merged;
    std::copy(ids.begin() + i + 2, ids.begin() + n, ids.begin() + i + 1);
    if (i + 2 < n) std::copy(ranks.begin() + i + 2, ranks.begin() + n - 1, ranks.begin() + i + 1);
    --n;
    if (i + 1 < n) ranks[i] = rank(ids[i], ids[i + 1]);
    if (i > 0) ranks[i - 1] = rank(ids[i - 1], ids[i]);
  }
  tokens.insert(tokens.end(), ids.begin(), ids.begin() + n);
}

void BytePairs::encode_long(std::string_view word, Scratch& s, std::vector<uint32_t>& tokens) const {
  const auto n = static_cast<uint32_t>(word.size());
  s.ids.resize(n);
  s.ranks.assign(n, kNoRank);
  s.previous.resize(n);
  s.next.resize(n);
  s.heap.clear();
  for (uint32_t i = 0; i < n; ++i) {
    s.ids[i] = byte_ids_[static_cast<unsigned char>(word[i])];
    s.previous[i] = i - 1;
    s.next[i] = i + 1;
  }
  // An entry of the heap: rank, place. It is out of date where the pair at its place has another rank by now.
  const auto is_later = std::greater<uint64_t>();
  const auto update = [&](uint32_t i) {
    s.ranks[i] = s.next[i] < n ? rank(s.ids[i], s.ids[s.next[i]]) : kNoRank;
    if (s.ranks[i] == kNoRank) return false;
    s.heap.push_back(uint64_t{s.ranks[i]} << 32 | i);
    return true;
  };
  for (uint32_t i = 0; i < n; ++i) update(i);
  std::make_heap(s.heap.begin(), s.heap.end(), is_later);
  while (!s.heap.empty()) {
    std::pop_heap(s.heap.begin(), s.heap.end(), is_later);
    const uint64_t top = s.heap.back();
    s.heap.pop_back();
    const auto i = static_cast<uint32_t>(top);
    if (s.ranks[i] != top >> 32) continue;
    const uint32_t right = s.next[i];
    s.ids[i] = find(s.ids[i], s.ids[right])->merged;
    s.ranks[right] = kNoRank;  // it is no longer there
    s.next[i] = s.next[right];
    if (s.next[i] < n) s.previous[s.next[i]] = i;
    if (update(i)) std::push_heap(s.heap.begin(), s.heap.end(), is_later);
    if (i > 0 && update(s.previous[i])) std::push_heap(s.heap.begin(), s.heap.end(), is_later);
  }
  for (uint32_t i = 0; i < n; i = s.next[i]) tokens.push_back(s.ids[i]);
}

}  // namespace braid
