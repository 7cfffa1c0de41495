#include "kernels/core/queues.h"

#include <cstring>

#include "kernels/build_config.h"

namespace braid {

namespace cuda {
decltype(braid::open_queue) open_queue;
void set(Context& ctx, std::shared_ptr<void>& event);
void hold(Context& ctx, void* event);
std::shared_ptr<void> pin(void* begin, int64_t bytes);  // null if there is not enough
decltype(braid::enqueue_copy) enqueue_copy;
}  // namespace cuda

Context open_queue(const Context& ctx) {
  if constexpr (kWithCuda) {
    if (ctx.on_cuda()) return cuda::open_queue(ctx);
  }
  return Context::cpu();
}

void Milestone::set(Context& ctx) {
  if constexpr (kWithCuda) {
    if (ctx.on_cuda() && !ctx.counts_only()) cuda::set(ctx, event_);
  }
}

void Milestone::hold(Context& ctx) const {
  if constexpr (kWithCuda) {
    if (event_) cuda::hold(ctx, event_.get());
  }
}

PinnedMemory::PinnedMemory(void* begin, int64_t bytes) {
  if (bytes == 0) return;
  if constexpr (kWithCuda) {
    pinned_ = cuda::pin(begin, bytes);
    check<OutOfMemoryError>(pinned_ != nullptr, "cannot pin ", bytes, " bytes of host memory for the GPU");
    return;
  }
  throw EnvironmentError("this build of braid has no CUDA operators");
}

void enqueue_copy(Context& ctx, Tensor to, const Tensor& from) {
  check_dtype(from.dtype(), {{"to", to}});
  check<ShapeError>(to.numel() == from.numel(), "to: expected ", from.numel(), " elements, got ", to.numel());
  if (from.bytes() == 0 || ctx.counts_only()) return;
  if constexpr (kWithCuda) {
    if (ctx.on_cuda()) return cuda::enqueue_copy(ctx, to, from);
  }
  std::memmove(to.raw(), from.raw(), static_cast<size_t>(from.bytes()));
}

}  // namespace braid
