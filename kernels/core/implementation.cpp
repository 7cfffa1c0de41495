#include "kernels/core/implementation.h"

#include "kernels/build_config.h"

namespace braid {

namespace cuda {
decltype(braid::row_pass_implementation) row_pass_implementation;
}

Implementation row_pass_implementation(const Context& ctx, DType activation, int64_t width) {
  if constexpr (kWithCuda) {
    if (ctx.on_cuda()) return cuda::row_pass_implementation(ctx, activation, width);
  }
  return {"CPU", ""};
}

}  // namespace braid
