#include "kernels/adamw.h"

namespace braid {

namespace cpu {
void adamw_update(Context& ctx, Tensor weight, Tensor m, Tensor v, const Tensor& gradient, const AdamWStep& step);
}

void adamw_update(Context& ctx, Tensor weight, Tensor m, Tensor v, const Tensor& gradient, const AdamWStep& step) {
  const int64_t n = weight.dim(0);
  check_shapes({{"weight", weight, {n}}, {"m", m, {n}}, {"v", v, {n}}, {"gradient", gradient, {n}}});
  check_dtype(weight.dtype(), {{"m", m}, {"v", v}, {"gradient", gradient}});
  if (n == 0) return;
  assert(step.step >= 1);
  cpu::adamw_update(ctx, weight, m, v, gradient, step);
}

}  // namespace braid
