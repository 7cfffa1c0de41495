#include "kernels/core/queues.h"

#include "kernels/cuda/queues.h"

namespace braid::cuda {

Context open_queue(const Context& ctx) {
  Context queue = Context::gpu(ctx.gpu().device_index);
  Gpu& gpu = queue.gpu();
  gpu.health_checks = ctx.gpu().health_checks;
  gpu.cublas_workspace.reset();
  gpu.cublas_workspace_bytes = 0;
  return queue;
}

cudaEvent_t open_event() {
  cudaEvent_t event = nullptr;
  check_cuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate");
  return event;
}

void record(Gpu& gpu, cudaEvent_t event) { check_cuda(cudaEventRecord(event, gpu.stream), "cudaEventRecord"); }

void hold(Gpu& gpu, cudaEvent_t event) { check_cuda(cudaStreamWaitEvent(gpu.stream, event, 0), "cudaStreamWaitEvent"); }

void set(Context& ctx, std::shared_ptr<void>& event) {
  if (!event)
    event = std::shared_ptr<void>(open_event(), [](void* e) { cudaEventDestroy(static_cast<cudaEvent_t>(e)); });
  record(ctx.gpu(), static_cast<cudaEvent_t>(event.get()));
}

void hold(Context& ctx, void* event) { hold(ctx.gpu(), static_cast<cudaEvent_t>(event)); }

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
