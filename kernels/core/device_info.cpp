#include "kernels/core/device_info.h"

#include "kernels/build_config.h"

namespace braid {

namespace cuda {
decltype(braid::device_info) device_info;
}

DeviceInfo device_info(const Context& ctx) {
  if constexpr (kWithCuda) {
    if (ctx.on_cuda()) return cuda::device_info(ctx);
  }
  return {"CPU", ""};
}

}  // namespace braid
