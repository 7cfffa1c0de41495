#include "data/row_window.h"

#include <algorithm>

namespace braid {

namespace simd = std::experimental;

// What is behind the slot moves to the front by one. All slots are written, as
// nobody can predict where the first one is.
void RowWindow::remove(Slots& slots, int slot) {
  for (int begin = 0; begin < kOpenRows; begin += kLanes) {
    Lanes lanes(&slots[begin], kAligned);
    simd::where(lane_index() >= slot - begin, lanes) = Lanes(&slots[begin + 1], simd::element_aligned);
    lanes.copy_to(&slots[begin], kAligned);
  }
}

int64_t RowWindow::open_row(int32_t tokens) {
  if (num_open_ == kOpenRows) {
    // The fullest row leaves the window: it is the least likely to take another piece. Found without branches as well.
    Lanes least(&free_[0], kAligned), slot = kOpenRows;
    for (int begin = kLanes; begin < kOpenRows; begin += kLanes)
      least = simd::min(least, Lanes(&free_[begin], kAligned));
    const Lanes min = simd::hmin(least);
    for (int begin = kOpenRows - kLanes; begin >= 0; begin -= kLanes)
      simd::where(Lanes(&free_[begin], kAligned) == min, slot) = lane_index() + begin;
    const int fullest = simd::hmin(slot);
    remove(free_, fullest);
    remove(row_, fullest);
    --num_open_;
  }
  set(free_, num_open_, row_tokens_ - tokens);
  set(row_, num_open_, num_rows_);
  ++num_open_;
  return num_rows_++;
}

void RowWindow::pack(std::span<RowWindow> windows, std::span<const std::vector<int32_t>> pieces) {
  size_t longest = 0;
  for (const std::vector<int32_t>& of_window : pieces) longest = std::max(longest, of_window.size());
  for (size_t i = 0; i < longest; ++i)
    for (size_t w = 0; w < windows.size(); ++w)
      if (i < pieces[w].size()) windows[w].row_for(pieces[w][i]);
}

}  // namespace braid
