#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace braid {

// The characters that stand for the 256 bytes in a byte-level vocabulary (GPT-2's bytes_to_unicode): printable Latin-1
// stands for itself, the rest for U+0100 and up.
const std::array<uint32_t, 256>& byte_characters();
// The bytes of a token written in these characters; false if it holds another.
bool bytes_of_token(std::string_view token, std::string& bytes);

// Byte-pair merges: from a word, a sequence of bytes, to ids. Of all neighbours that merge, the pair of lowest rank
// does, the leftmost first, until none is left.
class BytePairs {
 public:
  struct Merge {
    uint32_t left, right, merged;
  };
  // `byte_ids` of the 256 bytes; `merges` in the order of their ranks, the last counts where a pair comes twice.
  BytePairs(const std::array<uint32_t, 256>& byte_ids, const std::vector<Merge>& merges);

  // Room for one thread's work.
  struct Scratch {
    std::vector<uint32_t> ids, ranks, previous, next;
    std::vector<uint64_t> heap;
  };
  // Appends the ids of a word. Time O(n log n).
  void encode(std::string_view word, Scratch& scratch, std::vector<uint32_t>& tokens) const;

 private:
  static constexpr uint32_t kNoRank = UINT32_MAX;
  struct Slot {
    uint64_t pair;
    uint32_t rank, merged;
  };
  const Slot* find(uint32_t left, uint32_t right) const;
  uint32_t rank(uint32_t left, uint32_t right) const {
    const Slot* slot = find(left, right);
    return slot ? slot->rank : kNoRank;
  }
  void encode_short(std::string_view word, std::vector<uint32_t>& tokens) const;
  void encode_long(std::string_view word, Scratch& scratch, std::vector<uint32_t>& tokens) const;

  std::array<uint32_t, 256> byte_ids_;
  std::vector<Slot> slots_;  // open addressing, a power of two of them, at most half in use
  int shift_ = 0;
};

}  // namespace braid
