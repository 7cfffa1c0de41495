#include "kernels/random.h"

#include "kernels/core/profile.h"
#include "kernels/on_device.h"

namespace braid {

namespace cpu {
decltype(braid::fill_normal) fill_normal;
decltype(braid::fill_uniform) fill_uniform;
}  // namespace cpu
namespace cuda {
decltype(braid::fill_normal) fill_normal;
decltype(braid::fill_uniform) fill_uniform;
}  // namespace cuda

void fill_normal(Context& ctx, Tensor x, double mean, double stddev, uint64_t seed, uint64_t stream_id, int64_t first) {
  const OperatorScope scope(ctx, "fill_normal");
  if (x.numel() == 0 || ctx.counts_only()) return;
  on_device<cpu::fill_normal, cuda::fill_normal>(ctx, x, mean, stddev, seed, stream_id, first);
}

void fill_uniform(Context& ctx, Tensor x, double low, double high, uint64_t seed, uint64_t stream_id, int64_t first) {
  const OperatorScope scope(ctx, "fill_uniform");
  if (x.numel() == 0 || ctx.counts_only()) return;
  on_device<cpu::fill_uniform, cuda::fill_uniform>(ctx, x, low, high, seed, stream_id, first);
}

}  // namespace braid
