#pragma once

#include <array>
#include <cstdint>
#include <experimental/simd>

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
    if (slot < kOpenRows) {
      free_[slot] -= tokens;
      return row_[slot];
    }
    return open_row(tokens);
  }

 private:
  using Lanes = std::experimental::native_simd<int32_t>;
  static constexpr int kOpenRows = 64;
  int64_t open_row(int32_t tokens);
  // The first for which is_it(free) holds, or kOpenRows.
  template <class Test>
  int first_slot(Test&& is_it) const {
    for (int begin = 0; begin < kOpenRows; begin += static_cast<int>(Lanes::size())) {
      const auto found = is_it(Lanes(&free_[begin], std::experimental::vector_aligned));
      if (std::experimental::any_of(found)) return begin + std::experimental::find_first_set(found);
    }
    return kOpenRows;
  }

  int32_t row_tokens_;
  int num_open_ = 0;
  alignas(64) std::array<int32_t, kOpenRows> free_;  // tokens of the open rows, in the order in which they were opened
  std::array<int64_t, kOpenRows> row_ = {};
  int64_t num_rows_ = 0;
};

}  // namespace braid
