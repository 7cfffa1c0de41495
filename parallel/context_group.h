#pragma once

#include "kernels/core/profile.h"
#include "kernels/core/row_share.h"
#include "parallel/communicator.h"

namespace braid {

// Ranks that share rows between them, rank i the share i. What one of them needs of the others is gathered by all.
class ContextGroup {
 public:
  explicit ContextGroup(Communicator& ranks) : ranks_(ranks), share_{ranks.size(), ranks.rank()} {}
  Communicator& ranks() const { return ranks_; }
  const RowShare& share() const { return share_; }

  // Where what travels between the ranks is enqueued: behind what ctx was given so far, and beside what it is given
  // next, until it waits. What is read and written there must stay until then.
  Context& beside(Context& ctx) const {
    queue(ctx).wait_for(ctx);
    return queue(ctx);
  }
  void wait(Context& ctx) const {
    const OperatorScope scope(ctx, "wait_for_context");
    ctx.wait_for(queue(ctx));
  }

  // own (R, …): something for every row of this rank's batch, R = 2 B. Returns (ranks * R, …), that of all ranks, which
  // is there after wait().
  Tensor start_gather(Context& ctx, Scratch& scratch, const Tensor& own) const {
    Shape shape = {num_places(own.dim(0))};
    for (int axis = 1; axis < own.rank(); ++axis) shape.append(own.dim(axis));
    Tensor all = scratch.tensor(shape, own.dtype());
    ranks_.all_gather(beside(ctx), all, own);
    return all;
  }
  int64_t num_places(int64_t num_rows) const { return share_.count * num_rows; }
  // Where the part of a whole row lies among those that were gathered; num_rows: R.
  int64_t place(int64_t whole_row, int64_t part, int64_t num_rows) const {
    return share_.holder(part) * num_rows + whole_row * share_.parts_held() + share_.slot(part);
  }
  // Which part of which whole row a row of this rank's batch is.
  int64_t part_of(int64_t row) const { return share_.part(row % share_.parts_held()); }
  int64_t whole_row_of(int64_t row) const { return row / share_.parts_held(); }

 private:
  // Not ctx's side, where gradients travel that nobody waits for soon.
  static Context& queue(Context& ctx) { return ctx.side().side(); }

  Communicator& ranks_;
  RowShare share_;
};

}  // namespace braid
