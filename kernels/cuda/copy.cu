#include "kernels/core/copy.h"

#include <cstring>

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/queues.h"

namespace braid::cuda {
namespace {

constexpr int kThreads = 256;

// kSize consecutive elements of a thread, in one access or two of 16 bytes; reads and writes each element once.
template <int kSize, class To, class From>
__global__ void __launch_bounds__(kThreads) convert_kernel(To* to, const From* from, int64_t count) {
  const int64_t i = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * kSize;
  if (i >= count) return;
  struct alignas(kSize * sizeof(From)) Read {
    From element[kSize];
  };
  struct alignas(kSize * sizeof(To)) Written {
    To element[kSize];
  };
  const Read read = *reinterpret_cast<const Read*>(from + i);
  Written written;
#pragma unroll
  for (int j = 0; j < kSize; ++j) written.element[j] = static_cast<To>(static_cast<float>(read.element[j]));
  *reinterpret_cast<Written*>(to + i) = written;
}

// Reads two numbers and writes one per element.
template <class X>
__global__ void __launch_bounds__(kThreads) add_kernel(X* to, const X* from, int64_t count) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) to[i] = static_cast<X>(static_cast<float>(to[i]) + static_cast<float>(from[i]));
}

}  // namespace

void fill_zero(Context& ctx, Tensor x) {
  check_cuda(cudaMemsetAsync(x.raw(), 0, static_cast<size_t>(x.bytes()), stream_of(ctx)), "cudaMemsetAsync");
}

void copy(Context& ctx, Tensor to, const Tensor& from) {
  const bool to_host = to.device() == Device::kCpu;
  if (to_host) ctx.synchronize();  // a wait that notices errors of other ranks, which the copy's own would not
  enqueue_copy(ctx, to, from);
  if (to_host) ctx.synchronize();
}

void add(Context& ctx, Tensor to, const Tensor& from) {
  dispatch_activation("to", to, [&]<class X> {
    const int64_t count = from.numel();
    add_kernel<X><<<ceil_div(count, kThreads), kThreads, 0, stream_of(ctx)>>>(pointer<X>(to), pointer<X>(from), count);
    check_launch("add");
  });
}

void convert(Context& ctx, Tensor to, const Tensor& from) {
  dispatch_activation("to", to, [&]<class To> {
    dispatch_activation("from", from, [&]<class From> {
      const int64_t count = from.numel();
      auto launch = [&]<int kSize> {
        convert_kernel<kSize><<<ceil_div(count, kThreads * kSize), kThreads, 0, stream_of(ctx)>>>(
            pointer<To>(to), pointer<From>(from), count);
        check_launch("convert");
      };
      constexpr int kSize = 4;
      const auto aligned = [](const void* address, size_t bytes) {
        return reinterpret_cast<uintptr_t>(address) % bytes == 0;
      };
      if (count % kSize == 0 && aligned(to.raw(), kSize * sizeof(To)) && aligned(from.raw(), kSize * sizeof(From)))
        launch.template operator()<kSize>();
      else launch.template operator()<1>();
    });
  });
}

}  // namespace braid::cuda
