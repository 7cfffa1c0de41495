#pragma once

#include <array>
#include <cstdint>
#include <experimental/simd>
#include <span>
#include <vector>

namespace braid {

// Rows that still have room. A pure function of the sizes in their order.
class RowWindow {
 public:
  explicit RowWindow(int64_t row_tokens) : row_tokens_(static_cast<int32_t>(row_tokens)) { free_.fill(-1); }
  int64_t num_rows() const { return num_rows_; }
  // Row for a piece of at most row_tokens tokens.
  int64_t row_for(int32_t tokens) {
    if (tokens == row_tokens_) return num_rows_++;
    const int slot = first_slot([&](const Lanes& free) { return free >= tokens; });
    if (slot == kOpenRows) return open_row(tokens);
    set(free_, slot, free_[slot] - tokens);
    return row_[slot];
  }
  // What row_for does for the pieces of each window, a piece of every window in turn: a search waits for the one before
  // it in the same window, and that time belongs to the others.
  static void pack(std::span<RowWindow> windows, std::span<const std::vector<int32_t>> pieces);

 private:
  using Lanes = std::experimental::native_simd<int32_t>;
  static constexpr int kLanes = static_cast<int>(Lanes::size()), kOpenRows = 64;
  static constexpr auto kAligned = std::experimental::vector_aligned;
  // The last lanes are never used, only read.
  using Slots = std::array<int32_t, kOpenRows + kLanes>;

  int64_t open_row(int32_t tokens);
  static void remove(Slots& slots, int slot);
  static Lanes lane_index() {
    return Lanes([](int32_t i) { return i; });
  }
  // The first for which is_it(free) holds, or kOpenRows.
  template <class Test>
  int first_slot(Test&& is_it) const {
    for (int begin = 0; begin < kOpenRows; begin += kLanes) {
      const auto found = is_it(Lanes(&free_[begin], kAligned));
      if (std::experimental::any_of(found)) return begin + std::experimental::find_first_set(found);
    }
    return kOpenRows;
  }
  // Writes a whole vector: the next search reads it while the write is still under way, which a processor cannot do
  // where only a part of it was written.
  static void set(Slots& slots, int slot, int32_t value) {
    int32_t* at = &slots[slot / kLanes * kLanes];
    Lanes lanes(at, kAligned);
    std::experimental::where(lane_index() == slot % kLanes, lanes) = value;
    lanes.copy_to(at, kAligned);
  }

  int32_t row_tokens_;
  int num_open_ = 0;
  alignas(64) Slots free_;      // tokens of the open rows, in the order in which they were opened
  alignas(64) Slots row_ = {};  // their numbers
  int32_t num_rows_ = 0;
};

}  // namespace braid
