#include "data/row_window.h"

namespace braid {

namespace simd = std::experimental;

// What is behind the slot moves to the front by one.
void RowWindow::remove(Slots& slots, int slot) {
  for (int begin = slot / kLanes * kLanes; begin < kOpenRows; begin += kLanes) {
    Lanes lanes(&slots[begin], kAligned);
    simd::where(lane_index() >= slot - begin, lanes) = Lanes(&slots[begin + 1], simd::element_aligned);
    lanes.copy_to(&slots[begin], kAligned);
  }
}

int64_t RowWindow::open_row(int32_t tokens) {
  if (num_open_ == kOpenRows) {
    // The fullest row leaves the window: it is the least likely to take another piece.
    Lanes least(&free_[0], kAligned);
    for (int begin = kLanes; begin < kOpenRows; begin += kLanes) least = simd::min(least, Lanes(&free_[begin], kAligned));
    const int32_t min = simd::hmin(least);
    const int fullest = first_slot([&](const Lanes& free) { return free == min; });
    remove(free_, fullest);
    remove(row_, fullest);
    --num_open_;
  }
  set(free_, num_open_, row_tokens_ - tokens);
  set(row_, num_open_, num_rows_);
  ++num_open_;
  return num_rows_++;
}

}  // namespace braid
