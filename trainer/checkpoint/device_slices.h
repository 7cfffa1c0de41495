#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "trainer/checkpoint/checkpoint.h"

namespace braid {

// What a slice holds, into host memory of the dtype and size of slice.data; masters are joined a part at a time.
void copy_slice(Context& ctx, Tensor to, const CheckpointSlice& slice);

// Fills slice.data, on any device, from a checkpoint.
void read_slice(Context& ctx, const CheckpointReader& reader, CheckpointSlice& slice);

// Host memory that a rank takes, at most, for what it writes from elsewhere.
inline constexpr int64_t kStagingBytes = int64_t{64} << 20;

// What slices hold, in their order, in host memory: those that lie there whole as they are, the others in parts, each
// of which is gone when `body` returns. The parts pass through one buffer of at most kStagingBytes.
// Errors: OutOfMemoryError; what `body` throws.
void visit_on_host(Context& ctx, const std::vector<CheckpointSlice>& slices,
                   const std::function<void(const Tensor& part)>& body);

}  // namespace braid
