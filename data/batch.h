#pragma once

#include <cstdint>
#include <vector>

#include "kernels/core/segments.h"

namespace braid {

// One micro-batch of B rows with T tokens in host memory, rows one after the other.
struct Batch {
  int64_t num_rows = 0;          // B
  int64_t row_tokens = 0;        // T
  std::vector<int64_t> tokens;   // (N); padding holds the end-of-document id and is not valid in `segments`
  std::vector<int64_t> targets;  // (N); the next token of the same document, -1 where there is none
  Segments segments;
};

// What the losses of a step are divided by, over some set of micro-batches. Sums over ranks give the global batch.
struct TokenCounts {
  int64_t tokens = 0;       // valid tokens
  int64_t lm_targets = 0;   // tokens with a target
  int64_t mtp_tokens = 0;   // tokens whose next token lies in the same document (the MTP block sees it)
  int64_t mtp_targets = 0;  // of those, the ones whose next token has a target
};
TokenCounts count_tokens(const Batch& batch);

// Row t of the MTP block reads the embedding of token t + 1 and predicts target t + 1, inside the document.
//   next_tokens, next_targets (N), -1 where there is none
//   segments: the same documents, valid where a next token exists
struct MtpShift {
  std::vector<int64_t> next_tokens, next_targets;
  Segments segments;
};
MtpShift shift_for_mtp(const Batch& batch);

}  // namespace braid
