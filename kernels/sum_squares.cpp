#include "kernels/sum_squares.h"

#include "kernels/core/profile.h"
#include "kernels/on_device.h"

namespace braid {

namespace cpu {
decltype(braid::sum_squares) sum_squares;
}
namespace cuda {
decltype(braid::sum_squares) sum_squares;
}

void sum_squares(Context& ctx, Tensor out, const Tensor& x) {
  const OperatorScope scope(ctx, "sum_squares");
  check_shapes({{"out", out, {1}}});
  check_dtype(DType::kF64, {{"out", out}});
  on_device<cpu::sum_squares, cuda::sum_squares>(ctx, out, x);  // also for an x without elements: the sum is 0
}

}  // namespace braid
