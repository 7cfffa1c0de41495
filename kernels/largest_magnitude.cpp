#include "kernels/largest_magnitude.h"

#include "kernels/core/profile.h"
#include "kernels/on_device.h"

namespace braid {

namespace cpu {
decltype(braid::largest_magnitude) largest_magnitude;
}
namespace cuda {
decltype(braid::largest_magnitude) largest_magnitude;
}

void largest_magnitude(Context& ctx, Tensor out, const Tensor& x) {
  const OperatorScope scope(ctx, "largest_magnitude");
  check_shapes({{"out", out, {1}}});
  check_dtype(DType::kF64, {{"out", out}});
  if (ctx.counts_only()) return;
  on_device<cpu::largest_magnitude, cuda::largest_magnitude>(ctx, out, x);  // also for an x without elements
}

}  // namespace braid
