#pragma once

#include <vector>

#include "kernels/core/arena.h"
#include "kernels/core/context.h"
#include "kernels/expert_rows.h"
#include "parallel/communicator.h"

namespace braid {

// Where every (token, slot) pair of one micro-batch went: made by ExpertExchange::plan, read by the calls that move
// rows, kept from forward to backward. R = rows this rank received, grouped by its local experts; inside an expert they
// ascend by source rank, then token, then slot. On a single GPU, whose counts the host does not know, R is N K and only
// the first sum(rows_per_expert) rows are used.
struct ExpertRoute {
  ExpertOrder order;                          // of this rank's pairs over all E experts
  Tensor rows_per_expert;                     // (El) I64   received rows
  std::vector<int64_t> send_rows, recv_rows;  // per rank of the expert group
  std::vector<RowBlock> regroup, ungroup;     // received (rank, expert) order <-> (expert, rank) order
  int64_t num_rows = 0;                       // R
};

// Moves token rows to the ranks that hold their experts and back, over an expert group of size EP. Expert e lives on
// rank e / El, El = E / EP. Backward of dispatch is combine, backward of combine is dispatch.
// Errors: CommunicationError if a rank would receive more than max_rows (both numbers), or if counts disagree.
class ExpertExchange {
 public:
  // max_tokens: most tokens N in a call. max_rows_factor: see ParallelConfig.
  ExpertExchange(Communicator& group, int64_t num_experts, int64_t experts_per_token, int64_t max_tokens,
                 double max_rows_factor);

  int64_t num_local_experts() const { return num_experts_ / group_.size(); }
  int64_t max_rows() const { return max_rows_; }  // bound on R, for the buffers of the expert layer

  // Memory of a route for up to max_tokens tokens.
  void plan_memory(Planner& planner, ExpertRoute& route) const;

  //   expert_id (N, K) I32, -1 = not routed
  void plan(Context& ctx, ExpertRoute& route, const Tensor& expert_id);
  // rows[r] = x[token of r].   x (N, C) -> rows (R, C)
  void dispatch(Context& ctx, Tensor rows, const Tensor& x, const ExpertRoute& route);
  // y[n] = sum over slots of the token's rows, in slot order.   rows (R, C) -> y (N, C) overwritten
  void combine(Context& ctx, Tensor y, const Tensor& rows, const ExpertRoute& route);
  // Both in two parts: what ctx is given between them runs while the rows travel. The first returns what the second
  // takes; it lies in `scratch`, or is x (rows) itself, which must not change before.
  Tensor start_dispatch(Context& ctx, Scratch& scratch, const Tensor& x, const ExpertRoute& route);
  void finish_dispatch(Context& ctx, Tensor rows, const Tensor& travelling, const ExpertRoute& route);
  Tensor start_combine(Context& ctx, Scratch& scratch, const Tensor& rows, const ExpertRoute& route);
  void finish_combine(Context& ctx, Tensor y, const Tensor& travelling, const ExpertRoute& route);
  // A number per pair instead of a row per token.   gate (N, K) <-> row_gate (R); dropped pairs get 0
  void dispatch_gates(Context& ctx, Tensor row_gate, const Tensor& gate, const ExpertRoute& route);
  void return_gates(Context& ctx, Tensor gate, const Tensor& row_gate, const ExpertRoute& route);

 private:
  Communicator& group_;
  int64_t num_experts_, experts_per_token_, max_tokens_, max_rows_;
};

}  // namespace braid
