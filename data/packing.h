#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace braid {

class RowWindow;

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

// Rows of `row_tokens` that a document of so many tokens fills by itself, and what is left behind them. What is left is
// packed if it can predict anything.
struct RowCut {
  int64_t whole_rows;
  int32_t rest;
  static RowCut of(int64_t tokens, int64_t row_tokens) {
    // A division takes as long as all else here.
    const int64_t whole = tokens > row_tokens ? (tokens - 1) / row_tokens : 0;
    return {whole, static_cast<int32_t>(tokens - whole * row_tokens)};
  }
  bool has_rest() const { return rest >= 2; }
};

// The rows of a block of documents, or of their parts in one split. A row is listed when it is asked for: a document of
// a thousand rows costs as much as one of none.
class BlockRows {
 public:
  explicit BlockRows(int64_t row_tokens);
  ~BlockRows();
  struct Part {
    int64_t begin, tokens;  // of the shard
    int64_t document;       // of the shard
    int32_t shard;
    Ending ending;
  };
  void reserve(int64_t parts);
  void add(const Part& part);
  int64_t num_rows() const { return num_rows_; }
  std::vector<Piece> row(int64_t index) const;

 private:
  int64_t row_tokens_, num_rows_ = 0;
  std::unique_ptr<RowWindow> window_;
  std::vector<int64_t> packed_row_;  // row r of the window is this one
  std::vector<Part> parts_;
  std::vector<int64_t> first_row_;   // by part: its first whole row, or where it would be
  std::vector<int32_t> window_row_;  // by part: of the window, where its rest is; -1: it has none
};

}  // namespace braid
