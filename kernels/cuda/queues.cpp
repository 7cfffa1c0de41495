#include "kernels/core/queues.h"

#include "kernels/cuda/gpu.h"

namespace braid::cuda {

Context open_queue(const Context& ctx) {
  Context queue = Context::gpu(ctx.gpu().device_index);
  Gpu& gpu = queue.gpu();
  gpu.health_checks = ctx.gpu().health_checks;
  gpu.cublas_workspace.reset();
  gpu.cublas_workspace_bytes = 0;
  return queue;
}

void set(Context& ctx, std::shared_ptr<void>& event) {
  if (!event) {
    cudaEvent_t made = nullptr;
    check_cuda(cudaEventCreateWithFlags(&made, cudaEventDisableTiming), "cudaEventCreate");
    event = std::shared_ptr<void>(made, [](void* e) { cudaEventDestroy(static_cast<cudaEvent_t>(e)); });
  }
  check_cuda(cudaEventRecord(static_cast<cudaEvent_t>(event.get()), stream_of(ctx)), "cudaEventRecord");
}

void hold(Context& ctx, void* event) {
  check_cuda(cudaStreamWaitEvent(stream_of(ctx), static_cast<cudaEvent_t>(event), 0), "cudaStreamWaitEvent");
}

std::shared_ptr<void> pin(void* begin, int64_t bytes) {
  const cudaError_t result = cudaHostRegister(begin, static_cast<size_t>(bytes), cudaHostRegisterDefault);
  if (result == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // it is handled here
    return nullptr;
  }
  check_cuda(result, "cudaHostRegister");
  return std::shared_ptr<void>(begin, [](void* pinned) {
    cudaDeviceSynchronize();  // copies may be under way
    cudaHostUnregister(pinned);
  });
}

void enqueue_copy(Context& ctx, Tensor to, const Tensor& from) {
  check_cuda(
      cudaMemcpyAsync(to.raw(), from.raw(), static_cast<size_t>(from.bytes()), cudaMemcpyDefault, stream_of(ctx)),
      "cudaMemcpyAsync");
}

}  // namespace braid::cuda
