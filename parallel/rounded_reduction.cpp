#include "parallel/rounded_reduction.h"

#include <algorithm>

#include "kernels/core/copy.h"
#include "parallel/communicator_checks.h"

namespace braid {
namespace {

constexpr int64_t kBlockElements = int64_t{1} << 22;  // in fp32 at a time, of all ranks' parts

}  // namespace

void reduce_scatter_rounded(Context& ctx, Communicator& ranks, Tensor shard, const Tensor& full) {
  if (full.dtype() != DType::kBF16) return ranks.reduce_scatter(ctx, shard, full, ReduceOp::kSum);
  check_shards(full, shard, ranks.size());
  const int64_t size = ranks.size(), rank = ranks.rank(), n = shard.numel();
  if (size == 1) {
    if (shard.raw() != full.raw()) copy(ctx, shard, full);
    return;
  }
  const int64_t block = std::min(n, kBlockElements / size);
  const Tensor from = full.view({full.numel()}), to = shard.view({n});
  Scratch scratch(ctx);
  const Tensor wide = scratch.tensor({size * block}, DType::kF32);
  for (int64_t first = 0; first < n; first += block) {
    const int64_t count = std::min(block, n - first);
    for (int64_t r = 0; r < size; ++r)
      convert(ctx, wide.rows(r * count, (r + 1) * count), from.rows(r * n + first, r * n + first + count));
    const Tensor own = wide.rows(rank * count, (rank + 1) * count);
    ranks.reduce_scatter(ctx, own, wide.rows(0, size * count), ReduceOp::kSum);
    convert(ctx, to.rows(first, first + count), own);
  }
}

}  // namespace braid
