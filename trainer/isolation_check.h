#pragma once

#include <cstdint>
#include <string>

#include "kernels/core/context.h"
#include "parallel/process_mesh.h"
#include "trainer/config/config.h"

namespace braid {

// Is there a boundary between the changed document and the one behind it? Without one the check must fail: that is how
// it is known to look.
enum class Boundary { kKept, kTakenAway };

// What changed in the documents of a packed row when the one in their middle was given other tokens.
struct IsolationReport {
  int64_t row_tokens = 0;  // of the row, padding included
  int64_t changed_document_tokens = 0;
  int64_t other_tokens = 0;                                               // valid ones of the other documents
  int64_t outputs = 0, mtp_outputs = 0, token_losses = 0, gradients = 0;  // that were compared: tokens, tensors
  int64_t differing_outputs = 0, differing_mtp_outputs = 0, differing_losses = 0, differing_gradients = 0;
  // Of experts, that differ by rounding alone: B's rows stand between those of A and C, and where they take another
  // number of places the sums over rows are formed in other blocks. Then all gradients have kept their bits in another
  // pair of steps, in which B is computed but reaches no expert.
  int64_t reordered_gradients = 0;
  std::string first_difference;  // in words; empty if all bits are the same
  bool isolated() const { return first_difference.empty(); }
};

// Two forwards and backwards of the config's model, with weights from its seed, on one row of documents A B C and
// padding that differ in all tokens of B. Only A and C have targets, and the balance losses weigh 0, so nothing of what
// they give may depend on B: compares, bit for bit, the states behind the final norm and behind the MTP block, the loss
// of every token, and all gradients. (Zeros of either sign are the same.) Rows have train.seq_length tokens, at most
// 512. One rank.   Errors: ConfigError for rows of fewer than 16 tokens.
IsolationReport check_isolation(Context& ctx, const ProcessMesh& mesh, RunConfig config, Boundary boundary);

}  // namespace braid
