#pragma once

#include "parallel/communicator.h"

namespace braid {

// Communicator::reduce_scatter with kSum, also of bf16, which communicators refuse: what the ranks have is widened,
// summed in fp32 and rounded once, a block at a time.
//   full (size * n), shard (n): one dtype; shard may be this rank's part of full, which else stays as it is
void reduce_scatter_rounded(Context& ctx, Communicator& ranks, Tensor shard, const Tensor& full);

}  // namespace braid
