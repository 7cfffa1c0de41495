#include "data/row_window.h"

#include <algorithm>

namespace braid {

int64_t RowWindow::open_row(int32_t tokens) {
  if (num_open_ == kOpenRows) {
    // The fullest row leaves the window: it is the least likely to take another piece.
    Lanes least(&free_[0], std::experimental::vector_aligned);
    for (size_t i = Lanes::size(); i < kOpenRows; i += Lanes::size())
      least = std::experimental::min(least, Lanes(&free_[i], std::experimental::vector_aligned));
    const int32_t min = std::experimental::hmin(least);
    const auto fullest = free_.begin() + first_slot([&](const Lanes& free) { return free == min; });
    std::copy(row_.begin() + (fullest - free_.begin()) + 1, row_.end(), row_.begin() + (fullest - free_.begin()));
    std::copy(fullest + 1, free_.end(), fullest);
    --num_open_;
  }
  free_[num_open_] = row_tokens_ - tokens;
  row_[num_open_] = num_rows_;
  ++num_open_;
  return num_rows_++;
}

}  // namespace braid
