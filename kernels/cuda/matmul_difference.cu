#include <vector>

#include "kernels/core/memory.h"
#include "kernels/cuda/common.cuh"
#include "kernels/cuda/matmul_library.h"

namespace braid::cuda {
namespace {

constexpr int kThreads = 256, kBlocks = 1024;

// Block b's sums over its part.
template <class T>
__global__ void __launch_bounds__(kThreads)
    difference_kernel(ProductDifference* sums, const T* x, const T* y, int64_t count) {
  __shared__ double square[kThreads], difference[kThreads];
  __shared__ int64_t others[kThreads];
  ProductDifference sum;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += int64_t(gridDim.x) * kThreads) {
    const double a = static_cast<float>(x[i]), b = static_cast<float>(y[i]);
    sum.square += a * a;
    sum.difference += (a - b) * (a - b);
    sum.others += !(a == b);
  }
  square[threadIdx.x] = sum.square;
  difference[threadIdx.x] = sum.difference;
  others[threadIdx.x] = sum.others;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < kThreads; ++i) sum += {square[i], difference[i], others[i]};
  sums[blockIdx.x] = sum;
}

}  // namespace

ProductDifference difference_of_products(Context& ctx, const Tensor& x, const Tensor& y) {
  const std::shared_ptr<std::byte> memory = allocate_memory(Device::kCuda, kBlocks * sizeof(ProductDifference));
  check<OutOfMemoryError>(memory != nullptr, "no GPU memory to compare products");
  auto* sums = reinterpret_cast<ProductDifference*>(memory.get());
  dispatch_activation("c", x, [&]<class T> {
    difference_kernel<<<kBlocks, kThreads, 0, stream_of(ctx)>>>(sums, pointer<T>(x), pointer<T>(y), x.numel());
    check_launch("difference of products");
  });
  std::vector<ProductDifference> parts(kBlocks);
  check_cuda(
      cudaMemcpyAsync(parts.data(), sums, kBlocks * sizeof(ProductDifference), cudaMemcpyDeviceToHost, stream_of(ctx)),
      "cudaMemcpyAsync");
  ctx.synchronize();
  ProductDifference sum;
  for (const ProductDifference& part : parts) sum += part;
  return sum;
}

}  // namespace braid::cuda
