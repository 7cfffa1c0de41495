#pragma once

#include <vector>

#include "trainer/checkpoint/checkpoint.h"

namespace braid {

// What a slice holds, into host memory of the dtype and size of slice.data; masters are joined a part at a time.
void copy_slice(Context& ctx, Tensor to, const CheckpointSlice& slice);

// Fills slice.data, on any device, from a checkpoint.
void read_slice(Context& ctx, const CheckpointReader& reader, CheckpointSlice& slice);

// What a save reads: slices in host memory. Those that lie there whole are taken as they are, of the others it holds a
// copy.
class HostSlices {
 public:
  HostSlices(Context& ctx, std::vector<CheckpointSlice> slices);
  const std::vector<CheckpointSlice>& slices() const { return slices_; }

 private:
  std::vector<CheckpointSlice> slices_;
  std::vector<std::shared_ptr<std::byte>> memory_;
};

}  // namespace braid
