#include "kernels/random.h"

#include <numbers>

#include "kernels/cuda/common.cuh"

namespace braid::cuda {
namespace {

constexpr int kThreads = 256;

// One element per thread; bound by fp64 arithmetic.
template <class X, class Value>
__global__ void fill_kernel(X* x, int64_t count, uint64_t seed, uint64_t stream_id, int64_t first, Value value) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  const double number = value(philox(seed, stream_id, static_cast<uint64_t>(first + i)));
  x[i] = static_cast<X>(static_cast<float>(number));
}

template <class Value>
void fill(Context& ctx, Tensor& x, uint64_t seed, uint64_t stream_id, int64_t first, Value value) {
  dispatch_activation("x", x, [&]<class X> {
    const int64_t count = x.numel();
    fill_kernel<<<ceil_div(count, kThreads), kThreads, 0, stream_of(ctx)>>>(pointer<X>(x), count, seed, stream_id,
                                                                            first, value);
    check_launch("fill");
  });
}

using Bits = std::array<uint32_t, 4>;

struct Normal {  // Box-Muller, one number per counter, as on the CPU
  double mean, stddev;
  __device__ double operator()(const Bits& bits) const {
    const double radius = sqrt(-2 * log(unit_interval(bits[0], bits[1])));
    return mean + stddev * radius * cos(2 * std::numbers::pi * unit_interval(bits[2], bits[3]));
  }
};

struct Uniform {
  double low, high;
  __device__ double operator()(const Bits& bits) const { return low + (high - low) * unit_interval(bits[0], bits[1]); }
};

}  // namespace

void fill_normal(Context& ctx, Tensor x, double mean, double stddev, uint64_t seed, uint64_t stream_id, int64_t first) {
  fill(ctx, x, seed, stream_id, first, Normal{mean, stddev});
}

void fill_uniform(Context& ctx, Tensor x, double low, double high, uint64_t seed, uint64_t stream_id, int64_t first) {
  fill(ctx, x, seed, stream_id, first, Uniform{low, high});
}

}  // namespace braid::cuda
