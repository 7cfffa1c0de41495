#include "data/packing.h"

#include <algorithm>
#include <iterator>

#include "data/row_window.h"

namespace braid {

BlockRows::BlockRows(int64_t row_tokens) : row_tokens_(row_tokens), window_(std::make_unique<RowWindow>(row_tokens)) {}
BlockRows::~BlockRows() = default;

void BlockRows::reserve(int64_t parts) {
  parts_.reserve(parts);
  first_row_.reserve(parts);
  window_row_.reserve(parts);
}

void BlockRows::add(const Part& part) {
  const RowCut cut = RowCut::of(part.tokens, row_tokens_);
  parts_.push_back(part);
  first_row_.push_back(num_rows_);
  num_rows_ += cut.whole_rows;
  window_row_.push_back(-1);
  if (!cut.has_rest()) return;
  const int64_t row = window_->row_for(cut.rest);
  window_row_.back() = static_cast<int32_t>(row);
  if (row == std::ssize(packed_row_)) packed_row_.push_back(num_rows_++);
}

std::vector<Piece> BlockRows::row(int64_t index) const {
  const auto piece_of = [&](size_t p, int64_t skipped, int64_t tokens, Ending ending) {
    return Piece{parts_[p].begin + skipped, parts_[p].document, parts_[p].shard, static_cast<int32_t>(tokens), ending};
  };
  const auto packed = std::lower_bound(packed_row_.begin(), packed_row_.end(), index);
  if (packed == packed_row_.end() || *packed != index) {
    const size_t p = std::upper_bound(first_row_.begin(), first_row_.end(), index) - first_row_.begin() - 1;
    return {piece_of(p, (index - first_row_[p]) * row_tokens_, row_tokens_, Ending::kNextPiece)};
  }
  std::vector<Piece> pieces;
  const auto row = static_cast<int32_t>(packed - packed_row_.begin());
  for (size_t p = 0; p < parts_.size(); ++p) {
    if (window_row_[p] != row) continue;
    const RowCut cut = RowCut::of(parts_[p].tokens, row_tokens_);
    pieces.push_back(piece_of(p, cut.whole_rows * row_tokens_, cut.rest, parts_[p].ending));
  }
  return pieces;
}

}  // namespace braid
