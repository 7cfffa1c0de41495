#pragma once

#include <cstdint>
#include <vector>

#include "kernels/core/row_share.h"
#include "kernels/core/segments.h"

namespace braid {

// What the losses of a step are divided by, over some set of micro-batches. Sums over ranks give the global batch.
struct TokenCounts {
  int64_t tokens = 0;       // valid tokens
  int64_t lm_targets = 0;   // tokens with a target
  int64_t mtp_tokens = 0;   // tokens whose next token lies in the same document (the MTP block sees it)
  int64_t mtp_targets = 0;  // of those, the ones whose next token has a target
  TokenCounts& operator+=(const TokenCounts& other);
};

// What the MTP block reads: row t has the embedding of token t + 1 and predicts target t + 1, inside the document.
struct MtpView {
  std::vector<int64_t> tokens, targets;  // (N); -1 where there is none
  Segments segments;                     // the same documents, valid where a next token exists
};

// One micro-batch of B rows with T tokens in host memory, rows one after the other: what data/ makes and the model
// reads. Rows are appended first; complete() makes the rest of them.
struct Batch {
  int64_t num_rows = 0;          // B
  int64_t row_tokens = 0;        // T
  std::vector<int64_t> tokens;   // (N); padding holds the end-of-document id and is not valid in `segments`
  std::vector<int64_t> targets;  // (N); the next token of the same document, -1 where there is none
  Segments segments;
  std::vector<int64_t> sources;  // (B); which source a row is of, 0 if nobody said

  MtpView mtp;
  TokenCounts counts;

  // Fills the MTP view and the counts, once the rows are all there: on the thread that reads ahead, not in the step.
  void complete();
};

// What a share of the rows holds of a complete batch, complete itself: tokens, targets and MTP view are those of the
// whole rows, whose documents `segments` cuts. T must be a multiple of the parts of a row.
Batch share_of(const Batch& whole, const RowShare& share);

// Host memory as a tensor, for reading only.
const Tensor view_of(const std::vector<int64_t>& values);

}  // namespace braid
