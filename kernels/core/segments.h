#pragma once

#include <cstdint>
#include <vector>

#include "kernels/core/arena.h"
#include "kernels/core/context.h"
#include "kernels/core/tensor.h"

namespace braid {

// Documents of a packed batch of B rows with T tokens each, flattened to N = B * T tokens.
// Document d owns tokens [offsets[d], offsets[d+1]); none crosses a row. Nothing that looks along the sequence
// (convolution, delta rule, attention, rotary positions, MTP shift) may cross a document boundary.
// Tokens that are not valid (padding; MTP positions without a next token) are computed but never routed to an expert,
// counted in a loss or in a load.
struct Segments {
  // The same in a GPU's memory, for its kernels, which also want to know without searching where a token's document
  // begins and which pieces of at most kChunkTokens the documents are cut into.
  struct Tables {
    Tensor offsets;         // (D + 1) I32
    Tensor document_begin;  // (N) I32      first token of the document that the token belongs to
    Tensor position;        // (N) I32      in its document, with what came before the row
    Tensor valid;           // (N) U8
    Tensor first_chunk;     // (D + 1) I32  chunks [first_chunk[d], first_chunk[d + 1]) cut document d, in order
    Tensor chunk_begin;  // (num_chunks + 1) I32, last entry N: chunk i owns tokens [chunk_begin[i], chunk_begin[i + 1])
    Tensor by_length;    // (D) I32         see by_length()
    // (B + 1) I32  tokens before the rows up to each row, 0 first: the keys of attention are those before a row and the
    // row's own, so a token of row r has key token + key_shift[r + 1]. Not defined where nothing comes before a row.
    Tensor key_shift;
  };
  static constexpr int64_t kChunkTokens = 64;

  int64_t num_rows = 0;          // B
  int64_t row_tokens = 0;        // T
  std::vector<int64_t> offsets;  // (D + 1), offsets[0] = 0, offsets[D] = N, strictly increasing
  std::vector<uint8_t> valid;    // (N)
  Tables on_gpu;                 // defined after upload()
  // (B) or empty: none. Where rows are parts of a text: tokens of each row's first document that came before the row,
  // in a cache or in another part, and tokens of its last document that come behind it.
  std::vector<int64_t> tokens_before, tokens_behind;

  // Every row is one document, every token valid.
  static Segments whole_rows(int64_t num_rows, int64_t row_tokens) {
    Segments s{num_rows, row_tokens, {}, std::vector<uint8_t>(num_rows * row_tokens, 1)};
    for (int64_t row = 0; row <= num_rows; ++row) s.offsets.push_back(row * row_tokens);
    return s;
  }
  // One row that packs documents of these lengths, every token valid.
  static Segments packed(const std::vector<int64_t>& lengths) {
    Segments s{1, 0, {0}, {}};
    for (int64_t length : lengths) s.offsets.push_back(s.row_tokens += length);
    s.valid.assign(s.row_tokens, 1);
    return s;
  }

  // Memory of the tables of any segments with up to max_tokens tokens.
  static void plan_tables(Planner& planner, Tables& tables, int64_t max_tokens);
  // Fills on_gpu, in memory that was planned for `tables`; only on a GPU.
  void upload(Context& ctx, const Tables& tables);

  // The documents from the longest to the shortest, equal ones in order.
  std::vector<int32_t> by_length() const;
  int64_t num_chunks() const {
    int64_t count = 0;
    for (int64_t d = 0; d < num_documents(); ++d) count += (length(d) + kChunkTokens - 1) / kChunkTokens;
    return count;
  }
  int64_t num_documents() const { return static_cast<int64_t>(offsets.size()) - 1; }
  int64_t num_tokens() const { return num_rows * row_tokens; }
  int64_t begin(int64_t document) const { return offsets[document]; }
  int64_t end(int64_t document) const { return offsets[document + 1]; }
  int64_t length(int64_t document) const { return end(document) - begin(document); }
  int64_t before(int64_t row) const { return tokens_before.empty() ? 0 : tokens_before[row]; }
  int64_t behind(int64_t row) const { return tokens_behind.empty() ? 0 : tokens_behind[row]; }
  // Of the document that goes on from before the row, that is of its first; else 0.
  int64_t before_document(int64_t document) const {
    return tokens_before.empty() || begin(document) % row_tokens != 0 ? 0 : tokens_before[begin(document) / row_tokens];
  }
  int64_t num_valid() const {
    int64_t count = 0;
    for (uint8_t v : valid) count += v;
    return count;
  }
};

}  // namespace braid
