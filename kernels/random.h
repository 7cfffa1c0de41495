#pragma once

#include <cstdint>

#include "kernels/core/context.h"
#include "kernels/core/philox.h"
#include "kernels/core/tensor.h"

namespace braid {

// Element i of x gets the random number of global element first + i of the stream (seed, stream_id), so a shard is
// filled with the same values as the whole.    x fp32 or fp64; formed in fp64 and rounded once
void fill_normal(Context& ctx, Tensor x, double mean, double stddev, uint64_t seed, uint64_t stream_id, int64_t first);
void fill_uniform(Context& ctx, Tensor x, double low, double high, uint64_t seed, uint64_t stream_id, int64_t first);

}  // namespace braid
