#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "kernels/core/context.h"
#include "kernels/core/tensor.h"

namespace braid {

enum class ReduceOp { kSum, kMax };

// A group of ranks. Every member makes the same calls in the same order, with tensors that lie on one device. A call on
// device memory is ordered on ctx's stream and may return before the data has moved, one on host memory returns after:
// read results through ctx only. A repeated call has the same bits, and every member gets the same bits: floating-point
// sums are taken in rank order in host memory, and on GPUs in the order of NCCL's algorithm, which the number of ranks,
// their links and the size of the tensor decide. The largest of numbers and a NaN is the NaN; on GPUs, where NCCL would
// lose it, kMax takes integers only. In a context that counts only, a call takes its scratch and moves nothing.
// Errors: CommunicationError, naming the operation; ShapeError or DTypeError for tensors that do not fit.
class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // in_out: the same shape and dtype (F64, F32, I64, I32, U8) on every rank.
  virtual void all_reduce(Context& ctx, Tensor in_out, ReduceOp op) = 0;
  // full (size * n), shard (n): rank r receives the reduction of elements [r * n, (r + 1) * n). shard may be rank r's
  // part of full.
  virtual void reduce_scatter(Context& ctx, Tensor shard, const Tensor& full, ReduceOp op) = 0;
  // full (size * n), shard (n): full becomes the shards in rank order. shard may be rank r's part of full.
  virtual void all_gather(Context& ctx, Tensor full, const Tensor& shard) = 0;
  // Sends send_rows[r] consecutive rows to rank r, receives recv_rows[r] from it; both ordered by rank. A row is
  // everything behind the first axis. Counts may be 0; a rank sends itself what it receives from itself.
  virtual void all_to_all_rows(Context& ctx, Tensor recv, std::span<const int64_t> recv_rows, const Tensor& send,
                               std::span<const int64_t> send_rows) = 0;
  // The root's tensor replaces everyone's.
  virtual void broadcast(Context& ctx, Tensor in_out, int root) = 0;
  virtual void barrier(Context& ctx) = 0;

  // Whether these are ranks with a GPU each, all in one host.
  virtual bool gpus_of_one_host() const { return false; }

  // Ranks that pass the same color form a group, ordered by their rank here. Called by every member.
  virtual std::unique_ptr<Communicator> split(int color) = 0;
};

// One rank: every call is the identity, so callers never test for size 1.
std::unique_ptr<Communicator> make_local_communicator();

// A group of that size without members, for planning: in a context that counts only its calls take the scratch of MPI's
// (on a GPU of NCCL's, which is none); in any other they are refused.
enum class PlannedRanks { kAnywhere, kGpusOfOneHost };
std::unique_ptr<Communicator> make_planned_communicator(int size, PlannedRanks ranks = PlannedRanks::kAnywhere);

}  // namespace braid
