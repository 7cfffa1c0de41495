#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "kernels/core/arena.h"
#include "kernels/core/context.h"
#include "kernels/expert_rows.h"
#include "parallel/communicator.h"
#include "parallel/peer_windows.h"

namespace braid {

// Where a token's copies lie among those that a rank sends and receives.
enum class CopyPlaces {
  kPacked,  // one behind the other: only what is needed travels, but the host must know the counts
  kFixed,   // every token has its place on every rank: the host knows nothing, and tokens also go where no expert is
};

// Where every (token, slot) pair of one micro-batch went: made by ExpertExchange::plan, read by the calls that move
// rows, kept from forward to backward. A token's row travels once to every rank that holds one of its experts (a copy),
// and there becomes the rows of those experts.
//   S = most ranks of a token, min(K, EP);  U = places for copies on this rank, ascending by source rank, then token
//   R = rows of this rank, grouped by its local experts; inside an expert they ascend by copy, then slot, that is by
//   source rank, then token, then slot. Where the host does not know R, num_rows is a bound, and only the first
//   sum(rows_per_expert) rows are used.
// If a rank of the group has more rows than its buffers hold, all of them work through theirs in rounds.
struct ExpertRoute {
  struct Round {
    int64_t first_row, num_rows;
  };

  ExpertOrder copies;                         // of this rank's tokens: row_of_slot (N, S), a copy's place
  ExpertOrder order;                          // of the copies' (copy, slot) pairs: row_of_slot (U, K)
  std::vector<int64_t> send_rows, recv_rows;  // places per rank of the expert group
  int64_t num_rows = 0;                       // R
  std::vector<Round> rounds;                  // empty: all rows at once

  const Tensor& rows_per_expert() const { return order.rows_per_expert; }  // (El) I64
  bool in_rounds() const { return !rounds.empty(); }
};

// The rounds of a rank with these rows: whole experts, as many as max_rows allows; one with more is cut between blocks
// of kExpertBlockRows. A rank without rows has one round, of none.   max_rows >= kExpertBlockRows, or the sum
std::vector<ExpertRoute::Round> rounds_of(std::span<const int64_t> rows_per_expert, int64_t max_rows);

// Moves token rows to the ranks that hold their experts and back, over an expert group of size EP. Expert e lives on
// rank e / El, El = E / EP. Backward of dispatch is combine, backward of combine is dispatch.
// Errors: CommunicationError, on every rank, if counts disagree.
class ExpertExchange {
 public:
  // max_tokens: most tokens N in a call. max_rows_factor: see ParallelConfig. places: fixed between GPUs of one host
  // unless chosen, packed elsewhere.
  ExpertExchange(Communicator& group, int64_t num_experts, int64_t experts_per_token, int64_t max_tokens,
                 double max_rows_factor, std::optional<CopyPlaces> places = {});

  bool moves_rows() const { return group_.size() > 1; }  // to other ranks
  int64_t num_local_experts() const { return num_experts_ / group_.size(); }
  int64_t max_rows() const { return max_rows_; }      // of a round, or of all: what the expert layer's buffers hold
  int64_t max_copies() const { return max_copies_; }  // bound on U
  // Of the memory, so far, into which the GPUs of one host write each other's rows. Calls in a context that counts only
  // count it too; an exchange that did must not be used for anything else.
  int64_t window_bytes() const;

  // Memory of a route for up to max_tokens tokens.
  void plan_memory(Planner& planner, ExpertRoute& route) const;

  //   expert_id (N, K) I32, -1 = not routed
  void plan(Context& ctx, ExpertRoute& route, const Tensor& expert_id);
  // rows[r] = x[token of r].   x (N, C) -> rows (R, C)
  void dispatch(Context& ctx, Tensor rows, const Tensor& x, const ExpertRoute& route);
  // y[n] = sum over ranks, ascending, of what the token's rows there sum to in slot order.   rows (R, C) -> y (N, C)
  // overwritten. Sums are fp32 or wider; the sum of a rank is rounded to the dtype of the rows before it travels, so in
  // bf16 y depends on EP to a rounding per rank.
  void combine(Context& ctx, Tensor y, const Tensor& rows, const ExpertRoute& route);
  // Both in two parts: what ctx is given between them runs while the rows travel. The first returns what the second
  // takes; it lies in `scratch` or in memory of the exchange, or is x (rows) itself, which must not change before. Rows
  // travel one transfer at a time: what has started is finished before the next starts, and so do gates.
  Tensor start_dispatch(Context& ctx, Scratch& scratch, const Tensor& x, const ExpertRoute& route);
  void finish_dispatch(Context& ctx, Tensor rows, const Tensor& travelling, const Tensor& x, const ExpertRoute& route);
  Tensor start_combine(Context& ctx, Scratch& scratch, const Tensor& rows, const ExpertRoute& route);
  void finish_combine(Context& ctx, Tensor y, const Tensor& travelling, const ExpertRoute& route,
                      Accumulate accumulate = Accumulate::kNo);
  // Whether start_dispatch may come before plan(), because every token goes to every rank.
  bool starts_before_plan() const { return group_.size() > 1 && places_ == CopyPlaces::kFixed; }
  // A number per pair instead of a row per token.   gate (N, K) <-> row_gate (R); dropped pairs get 0
  void dispatch_gates(Context& ctx, Tensor row_gate, const Tensor& gate, const ExpertRoute& route);
  void return_gates(Context& ctx, Tensor gate, const Tensor& row_gate, const ExpertRoute& route);
  Tensor start_dispatch_gates(Context& ctx, Scratch& scratch, const Tensor& gate, const ExpertRoute& route);
  void finish_dispatch_gates(Context& ctx, Tensor row_gate, const Tensor& travelling, const ExpertRoute& route);
  Tensor start_return_gates(Context& ctx, Scratch& scratch, const Tensor& row_gate, const ExpertRoute& route);
  void finish_return_gates(Context& ctx, Tensor gate, const Tensor& travelling, const ExpertRoute& route);

  // Rows in rounds: between start_dispatch, of rows and of gates, and finish_combine,
  //   sums = zero_sums(C)
  //   for every round: finish_dispatch, finish_dispatch_gates and the experts with its route; add_rows(sums, ., order)
  //   start_combine_sums(sums), in the place of start_combine
  // and all bits are those of all rows at once. A round's route lies in `scratch`.
  ExpertRoute round(Context& ctx, Scratch& scratch, const ExpertRoute& route, const ExpertRoute::Round& round) const;
  Tensor zero_sums(Context& ctx, Scratch& scratch, int64_t C, DType activation, const ExpertRoute& route) const;
  Tensor start_combine_sums(Context& ctx, Scratch& scratch, const Tensor& sums, DType activation,
                            const ExpertRoute& route);
  // The same for a number per pair: their sums are (U, K).
  Tensor zero_gate_sums(Context& ctx, Scratch& scratch, DType wide, const ExpertRoute& route) const;
  void add_gates(Context& ctx, Tensor sums, const Tensor& row_gate, const ExpertRoute& round) const;
  Tensor start_return_gate_sums(Context& ctx, Scratch& scratch, const Tensor& sums, const ExpertRoute& route);
  // Waits for what start_dispatch brings, of which finish_dispatch may then read the result while others are under way:
  // a window holds it only until another rank, which may be ahead, sends the next but one.
  Tensor keep(Context& ctx, Scratch& scratch, const Tensor& travelling) const;

  // On the GPU plan() does not know the counts, and cuts what buffers do not hold. Whether one did since the last call,
  // on a rank of the group, which all must call this: then what followed is to be done again, now with plans that wait
  // for the counts and make rounds, until none of them needs any. Waits for ctx if rows may be too many.
  // In a context that counts only, what follows every other call takes rounds, if any may, and nothing was cut.
  bool rows_were_cut(Context& ctx);
  // Where what follows cannot be done again: plans wait for the counts at once.
  void wait_for_counts() { waits_for_counts_ = true; }

 private:
  int64_t most_ranks_of_a_token() const;
  int64_t num_tokens(const ExpertRoute& route) const;
  bool fits_always() const { return max_rows_ == max_tokens_ * experts_per_token_ * group_.size(); }
  Tensor needed_rows(Context& ctx);
  void plan_rounds(Context& ctx, ExpertRoute& route, const Tensor& expert_id);
  void begin_rounds(Context& ctx, ExpertRoute& route, const Tensor& expert_id, std::vector<ExpertRoute::Round> rounds);
  const ExpertOrder& order_of_tokens(const ExpertRoute& route) const;
  void plan_copies(Context& ctx, ExpertRoute& route, const Tensor& expert_id);
  void exchange_counts(Context& ctx, ExpertRoute& route);
  // What travels apart, so that numbers that are waited for do not stand behind rows.
  struct Lane {
    const char* waiting;  // what a profile shows: the part that nothing else hides
    std::unique_ptr<PeerWindows> windows;
    bool none = false;  // the GPUs cannot
  };
  Tensor own_places(const Tensor& copies) const;
  std::vector<std::pair<int64_t, int64_t>> other_places() const;
  Tensor with_own(Context& ctx, const Tensor& travelling, const Tensor& own) const;
  PeerWindows* windows(Context& ctx, Lane& lane, int64_t bytes);
  void wait_for(Context& ctx, const Lane& lane) const;
  Tensor send_to_experts(Context& ctx, Scratch& scratch, Lane& lane, const Tensor& x, const ExpertRoute& route);
  Tensor send_to_tokens(Context& ctx, Scratch& scratch, Lane& lane, const Tensor& copies, const ExpertRoute& route);

  Communicator& group_;
  CopyPlaces places_;
  int64_t num_experts_, experts_per_token_, max_tokens_, max_rows_, max_copies_;
  Lane rows_{"wait_for_rows"}, numbers_{"wait_for_gates"};
  std::shared_ptr<std::byte> needed_rows_;  // I64, on the device: the most that a plan found, if it may be too many
  bool waits_for_counts_ = false;           // on the GPU; elsewhere plans always do
  bool had_rounds_ = false;                 // since the last rows_were_cut
};

}  // namespace braid
