#pragma once

#include "kernels/core/row_share.h"
#include "parallel/communicator.h"

namespace braid {

// Ranks that share rows between them, rank i the share i. What one of them needs of the others is gathered by all.
class ContextGroup {
 public:
  explicit ContextGroup(Communicator& ranks) : ranks_(ranks), share_{ranks.size(), ranks.rank()} {}
  Communicator& ranks() const { return ranks_; }
  const RowShare& share() const { return share_; }

  // own (R, …): something for every row of this rank's batch, R = 2 B.  all (ranks * R, …): that of all ranks.
  void gather(Context& ctx, Tensor all, const Tensor& own) const { ranks_.all_gather(ctx, all, own); }
  int64_t num_places(int64_t num_rows) const { return share_.count * num_rows; }
  // Where the part of a whole row lies among those that were gathered; num_rows: R.
  int64_t place(int64_t whole_row, int64_t part, int64_t num_rows) const {
    return share_.holder(part) * num_rows + whole_row * share_.parts_held() + share_.slot(part);
  }
  // Which part of which whole row a row of this rank's batch is.
  int64_t part_of(int64_t row) const { return share_.part(row % share_.parts_held()); }
  int64_t whole_row_of(int64_t row) const { return row / share_.parts_held(); }

 private:
  Communicator& ranks_;
  RowShare share_;
};

}  // namespace braid
