#include "kernels/random.h"

namespace braid {

namespace cpu {
void fill_normal(Context& ctx, Tensor x, double mean, double stddev, uint64_t seed, uint64_t stream_id, int64_t first);
void fill_uniform(Context& ctx, Tensor x, double low, double high, uint64_t seed, uint64_t stream_id, int64_t first);
}  // namespace cpu

void fill_normal(Context& ctx, Tensor x, double mean, double stddev, uint64_t seed, uint64_t stream_id, int64_t first) {
  if (x.numel() == 0) return;
  cpu::fill_normal(ctx, x, mean, stddev, seed, stream_id, first);
}

void fill_uniform(Context& ctx, Tensor x, double low, double high, uint64_t seed, uint64_t stream_id, int64_t first) {
  if (x.numel() == 0) return;
  cpu::fill_uniform(ctx, x, low, high, seed, stream_id, first);
}

}  // namespace braid
