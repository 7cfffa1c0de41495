#include "kernels/sum_squares.h"

#include "kernels/core/copy.h"
#include "kernels/core/memory.h"
#include "kernels/cuda/ordered_sum.cuh"
#include "kernels/cuda/row_access.cuh"

namespace braid::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxBlocks = 1024;
constexpr int kLoads = 4;  // of a thread at a time

// Block i sums elements [i * block_elements, (i + 1) * block_elements), in fp64. Reads every element once.
template <class V, class X>
__global__ void __launch_bounds__(kThreads)
    sum_squares_kernel(double* partial, const X* x, int64_t count, int64_t block_elements) {
  __shared__ double of_thread[kThreads];
  const int64_t begin = int64_t(blockIdx.x) * block_elements, end = min(begin + block_elements, count);
  double sum = 0;
  for (int64_t first = begin + threadIdx.x * V::kSize; first < end; first += kLoads * kThreads * V::kSize) {
    V v[kLoads];
#pragma unroll
    for (int j = 0; j < kLoads; ++j)
      if (first + j * kThreads * V::kSize < end) v[j] = V::load(x + first + j * kThreads * V::kSize);
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      if (first + j * kThreads * V::kSize >= end) continue;
#pragma unroll
      for (int i = 0; i < V::kSize; ++i) sum += double(v[j][i]) * double(v[j][i]);
    }
  }
  of_thread[threadIdx.x] = sum;
  __syncthreads();
  for (int width = kThreads / 2; width > 0; width /= 2) {
    if (threadIdx.x < width) of_thread[threadIdx.x] += of_thread[threadIdx.x + width];
    __syncthreads();
  }
  if (threadIdx.x == 0) partial[blockIdx.x] = of_thread[0];
}

}  // namespace

void sum_squares(Context& ctx, Tensor out, const Tensor& x) {
  fill_zero(ctx, out);
  const int64_t count = x.numel();
  if (count == 0) return;
  const int64_t block_elements = round_up(ceil_div(count, kMaxBlocks), kThreads * kLoads);
  const int64_t num_blocks = ceil_div(count, block_elements);
  Scratch scratch(ctx);
  double* partial = scratch.array<double>(num_blocks);
  if (ctx.counts_only()) return;
  dispatch_activation("x", x, [&]<class X> {
    dispatch_width<X>(count, {x.raw()}, [&]<class V> {
      sum_squares_kernel<V, X>
          <<<num_blocks, kThreads, 0, stream_of(ctx)>>>(partial, pointer<X>(x), count, block_elements);
      check_launch("sum_squares");
    });
  });
  add_partials(ctx, pointer<double>(out), partial, num_blocks, 1);
}

}  // namespace braid::cuda
