#pragma once

#include <cstdint>

#include "kernels/core/context.h"
#include "kernels/core/philox.h"
#include "kernels/core/tensor.h"

namespace braid {

// Element i of x gets the random number of global element first + i of the stream (seed, stream_id), so a shard is
// filled with the same values as the whole.    x fp32, bf16 (GPU) or fp64 (CPU); formed in fp64 and rounded at the end.
// CPU and GPU take logarithm and cosine from different libraries: they may differ in the last bit of the fp64 number.
void fill_normal(Context& ctx, Tensor x, double mean, double stddev, uint64_t seed, uint64_t stream_id, int64_t first);
void fill_uniform(Context& ctx, Tensor x, double low, double high, uint64_t seed, uint64_t stream_id, int64_t first);

}  // namespace braid
