#include "kernels/largest_magnitude.h"

#include <algorithm>

#include "kernels/core/copy.h"
#include "kernels/cuda/row_access.cuh"

namespace braid::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxBlocks = 1024;

// Without their signs doubles are ordered as their bits are, NaN above all, so the order of atomics does not matter.
// Reads every element once. Expects *out to be 0.
template <class V, class X>
__global__ void __launch_bounds__(kThreads) largest_magnitude_kernel(double* out, const X* x, int64_t count) {
  uint32_t largest = 0;
  const int64_t stride = int64_t(gridDim.x) * kThreads * V::kSize;
  for (int64_t first = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * V::kSize; first < count; first += stride) {
    const V v = V::load(x + first);
#pragma unroll
    for (int i = 0; i < V::kSize; ++i) largest = max(largest, __float_as_uint(float(v[i])) & 0x7fffffffu);
  }
  largest = __reduce_max_sync(0xffffffffu, largest);
  if (threadIdx.x % kWarpSize == 0)
    atomicMax(reinterpret_cast<unsigned long long*>(out),
              static_cast<unsigned long long>(__double_as_longlong(double(__uint_as_float(largest)))));
}

}  // namespace

void largest_magnitude(Context& ctx, Tensor out, const Tensor& x) {
  fill_zero(ctx, out);
  const int64_t count = x.numel();
  if (count == 0) return;
  dispatch_activation("x", x, [&]<class X> {
    dispatch_width<X>(count, {x.raw()}, [&]<class V> {
      const int64_t blocks = std::min<int64_t>(kMaxBlocks, ceil_div(count, kThreads * V::kSize));
      largest_magnitude_kernel<V, X>
          <<<blocks, kThreads, 0, stream_of(ctx)>>>(pointer<double>(out), pointer<X>(x), count);
      check_launch("largest_magnitude");
    });
  });
}

}  // namespace braid::cuda
