#include "kernels/split_weights.h"

#include "kernels/cuda/split_weights.cuh"

namespace braid::cuda {
namespace {

constexpr int kThreads = 256;

// A thread owns kCount consecutive elements: 8 bytes each, 6 without low bits.
template <int kCount, bool kHasLow>
__global__ void __launch_bounds__(kThreads) split_kernel(bf16* weight, int16_t* low, const float* master, int64_t n) {
  const int64_t i = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * kCount;
  if (i >= n) return;
  const auto from = Pack<float, kCount>::load(master + i);
  Pack<bf16, kCount> high;
  Pack<int16_t, kCount> rest;
#pragma unroll
  for (int k = 0; k < kCount; ++k) split(high.element[k], rest.element[k], from.element[k]);
  high.store(weight + i);
  if constexpr (kHasLow) rest.store(low + i);
}

template <int kCount>
__global__ void __launch_bounds__(kThreads)
    join_kernel(float* master, const bf16* weight, const int16_t* low, int64_t n) {
  const int64_t i = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * kCount;
  if (i >= n) return;
  const auto high = Pack<bf16, kCount>::load(weight + i);
  const auto rest = Pack<int16_t, kCount>::load(low + i);
  Pack<float, kCount> to;
#pragma unroll
  for (int k = 0; k < kCount; ++k) to.element[k] = join(high.element[k], rest.element[k]);
  to.store(master + i);
}

}  // namespace

void split_weights(Context& ctx, Tensor weight, Tensor low, const Tensor& master) {
  const int64_t n = master.numel();
  dispatch_count(n, {&weight, &low, &master}, [&]<int kCount> {
    const auto launch = [&](auto* kernel) {
      kernel<<<ceil_div(n, kThreads * kCount), kThreads, 0, stream_of(ctx)>>>(
          pointer<bf16>(weight), pointer<int16_t>(low), pointer<float>(master), n);
      check_launch("split_weights");
    };
    if (low.defined()) launch(split_kernel<kCount, true>);
    else launch(split_kernel<kCount, false>);
  });
}

void join_weights(Context& ctx, Tensor master, const Tensor& weight, const Tensor& low) {
  const int64_t n = master.numel();
  dispatch_count(n, {&weight, &low, &master}, [&]<int kCount> {
    join_kernel<kCount><<<ceil_div(n, kThreads * kCount), kThreads, 0, stream_of(ctx)>>>(
        pointer<float>(master), pointer<bf16>(weight), pointer<int16_t>(low), n);
    check_launch("join_weights");
  });
}

}  // namespace braid::cuda
