#pragma once

#include <memory>

#include "kernels/core/context.h"
#include "kernels/core/memory.h"
#include "parallel/communicator.h"

namespace braid {

// Memory on every GPU of a group, all of them in one host, into which the others write. Rows travel by the copy
// engines, and a stream of its own waits for numbers in device memory: no kernel takes multiprocessors from what is
// computed meanwhile, but for one of some 20 us where a message is small, and no host takes part.
//
// Every member makes the same calls in the same order. A call sends what ctx has made by then, beside what ctx is given
// next; what it returns is there once ctx has waited, and stays until the next call but one.
// Errors: a rank that does not come for ten minutes is a CommunicationError where the host waits for the GPU.
class PeerWindows {
 public:
  virtual ~PeerWindows() = default;
  // Of a GPU's memory, for windows of so many bytes: two, as a call's rows stay until the next call but one, and flags.
  static constexpr int64_t kFlagBytes = 4096;
  static int64_t memory_bytes(int64_t bytes) { return kFlagBytes + 2 * round_up(bytes, kMemoryAlignBytes); }
  // Most that a rank receives by one call.
  virtual int64_t bytes() const = 0;
  // Rank s's rows from row s * places on, those behind its last are anything. A rank's own rows stay where they are: in
  // its part of the result there is anything, and ctx may write there.
  //   rows (N, C), N <= places  ->  (size * places, C)
  virtual Tensor all_gather(Context& ctx, const Tensor& rows, int64_t places) = 0;
  // From row s * places on, what rank s has from row rank * places on, but for the own part, as above.
  //   rows (size * places, C)  ->  the same shape
  virtual Tensor all_to_all(Context& ctx, const Tensor& rows) = 0;
  // What ctx is given from now on runs when the rows of the last call have arrived, and its own have left.
  virtual void wait(Context& ctx) = 0;
};

// To count with: as large as asked for, but without memory.
class CountedWindows final : public PeerWindows {
 public:
  CountedWindows(int size, int64_t bytes) : size_(size), bytes_(bytes) {}
  int64_t bytes() const override { return bytes_; }
  Tensor all_gather(Context& ctx, const Tensor& rows, int64_t places) override {
    return Tensor(nullptr, rows.dtype(), {size_ * places, rows.dim(1)}, ctx.device());
  }
  Tensor all_to_all(Context& ctx, const Tensor& rows) override {
    return Tensor(nullptr, rows.dtype(), rows.shape(), ctx.device());
  }
  void wait(Context&) override {}

 private:
  int size_;
  int64_t bytes_;
};

// Called by every member of a group of at most 64. Null, for all of them, if one's GPU cannot write into another's
// memory. Errors: OutOfMemoryError.
std::unique_ptr<PeerWindows> open_peer_windows(Context& ctx, Communicator& group, int64_t bytes);

}  // namespace braid
