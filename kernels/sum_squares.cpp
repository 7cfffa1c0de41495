#include "kernels/sum_squares.h"

namespace braid {

namespace cpu {
void sum_squares(Context& ctx, Tensor out, const Tensor& x);
}

void sum_squares(Context& ctx, Tensor out, const Tensor& x) {
  check_shapes({{"out", out, {1}}});
  check_dtype(DType::kF64, {{"out", out}});
  cpu::sum_squares(ctx, out, x);  // also for an x without elements: the sum is 0
}

}  // namespace braid
