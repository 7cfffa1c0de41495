#include "data/packing.h"

#include <algorithm>
#include <numeric>

namespace braid {

int64_t RowWindow::open_row(int32_t tokens) {
  if (num_open_ == kOpenRows) {
    // The fullest row leaves the window: it is the least likely to take another piece.
    const auto fullest = std::min_element(free_.begin(), free_.end());
    std::copy(row_.begin() + (fullest - free_.begin()) + 1, row_.end(), row_.begin() + (fullest - free_.begin()));
    std::copy(fullest + 1, free_.end(), fullest);
    --num_open_;
  }
  free_[num_open_] = row_tokens_ - tokens;
  row_[num_open_] = num_rows_;
  ++num_open_;
  return num_rows_++;
}

BlockRows pack(const std::vector<Piece>& pieces, int64_t row_tokens) {
  RowWindow window(row_tokens);
  std::vector<int64_t> row_of(pieces.size());
  for (size_t i = 0; i < pieces.size(); ++i) row_of[i] = window.row_for(pieces[i].tokens);
  BlockRows packed;
  packed.row_begin.assign(window.num_rows() + 1, 0);
  for (int64_t row : row_of) ++packed.row_begin[row + 1];
  std::partial_sum(packed.row_begin.begin(), packed.row_begin.end(), packed.row_begin.begin());
  packed.pieces.resize(pieces.size());
  std::vector<int64_t> next(packed.row_begin.begin(), packed.row_begin.end() - 1);
  for (size_t i = 0; i < pieces.size(); ++i) packed.pieces[next[row_of[i]]++] = pieces[i];
  return packed;
}

}  // namespace braid
