#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace braid {

// How documents become rows of `row_tokens` tokens. A document longer than a row is cut into whole rows and a
// remainder; what is shorter than a row is packed whole, first fit over a window of open rows, in document order.
// A piece that predicts nothing (a lone end-of-document id) is left out.

enum class Ending : int8_t {
  kDocument,   // ends with the end-of-document id
  kNextPiece,  // the document goes on behind it, so its last token has a target
  kHeldOut,    // the document goes on in the other split
};

struct Piece {
  int64_t begin;     // token of the shard
  int64_t document;  // of the shard
  int32_t shard, tokens;
  Ending ending;
};

// Rows that still have room. A pure function of the sizes in their order.
class RowWindow {
 public:
  explicit RowWindow(int64_t row_tokens) : row_tokens_(static_cast<int32_t>(row_tokens)) { free_.fill(-1); }
  int64_t num_rows() const { return num_rows_; }
  // Row for a piece of at most row_tokens tokens.
  int64_t row_for(int32_t tokens) {
    if (tokens == row_tokens_) return num_rows_++;
    for (int begin = 0; begin < num_open_; begin += kAtOnce) {
      int32_t fits = 0;  // some of these do; a loop that the compiler makes vectors of
      for (int i = 0; i < kAtOnce; ++i) fits |= free_[begin + i] >= tokens;
      if (!fits) continue;
      int row = begin;
      while (free_[row] < tokens) ++row;
      free_[row] -= tokens;
      return row_[row];
    }
    return open_row(tokens);
  }

 private:
  static constexpr int kOpenRows = 64, kAtOnce = 16;
  int64_t open_row(int32_t tokens);

  int32_t row_tokens_;
  int num_open_ = 0;
  alignas(64) std::array<int32_t, kOpenRows> free_;  // tokens of the open rows, in the order in which they were opened
  std::array<int64_t, kOpenRows> row_ = {};
  int64_t num_rows_ = 0;
};

// Calls piece(begin, tokens, ending) for the pieces of a document or of its part in one split: tokens [begin, end).
template <class F>
void for_each_piece(int64_t begin, int64_t end, Ending ending, int64_t row_tokens, F&& piece) {
  constexpr int64_t kMinTokens = 2;  // that can predict anything
  for (; end - begin > row_tokens; begin += row_tokens) piece(begin, row_tokens, Ending::kNextPiece);
  if (end - begin >= kMinTokens) piece(begin, end - begin, ending);
}

// Pieces in the order of their rows.
struct BlockRows {
  std::vector<Piece> pieces;
  std::vector<int64_t> row_begin;  // (rows + 1) into pieces
};
BlockRows pack(const std::vector<Piece>& pieces, int64_t row_tokens);

}  // namespace braid
