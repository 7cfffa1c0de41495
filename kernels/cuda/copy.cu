#include "kernels/core/copy.h"

#include <cstring>

#include "kernels/cuda/common.cuh"

namespace braid::cuda {
namespace {

// One thread per element; reads and writes each once.
template <class To, class From>
__global__ void convert_kernel(To* to, const From* from, int64_t count) {
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += int64_t(gridDim.x) * blockDim.x)
    to[i] = static_cast<To>(static_cast<float>(from[i]));
}

}  // namespace

void fill_zero(Context& ctx, Tensor x) {
  check_cuda(cudaMemsetAsync(x.raw(), 0, static_cast<size_t>(x.bytes()), stream_of(ctx)), "cudaMemsetAsync");
}

void copy(Context& ctx, Tensor to, const Tensor& from) {
  const bool to_host = to.device() == Device::kCpu;
  if (to_host) ctx.synchronize();  // a wait that notices errors of other ranks, which the copy's own would not
  check_cuda(
      cudaMemcpyAsync(to.raw(), from.raw(), static_cast<size_t>(from.bytes()), cudaMemcpyDefault, stream_of(ctx)),
      "cudaMemcpyAsync");
  if (to_host) ctx.synchronize();
}

void convert(Context& ctx, Tensor to, const Tensor& from) {
  dispatch_activation("to", to, [&]<class To> {
    dispatch_activation("from", from, [&]<class From> {
      const int64_t blocks = std::min<int64_t>(ceil_div(from.numel(), 256), 8 * ctx.gpu().num_sms);
      convert_kernel<<<blocks, 256, 0, stream_of(ctx)>>>(pointer<To>(to), pointer<From>(from), from.numel());
      check_launch("convert");
    });
  });
}

}  // namespace braid::cuda
