#pragma once

#include <utility>

#include "kernels/build_config.h"
#include "kernels/core/context.h"

namespace braid {

// An operator where its context computes: on_device<cpu::f, cuda::f>(ctx, …). A build without CUDA has no cuda::f and
// calls none.
template <auto* of_cpu, auto* of_cuda, class... Arguments>
auto on_device(Context& ctx, Arguments&&... arguments) {
  if constexpr (kWithCuda) {
    if (ctx.on_cuda()) return of_cuda(ctx, std::forward<Arguments>(arguments)...);
  }
  return of_cpu(ctx, std::forward<Arguments>(arguments)...);
}

}  // namespace braid
