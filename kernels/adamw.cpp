#include "kernels/adamw.h"

#include "kernels/build_config.h"
#include "kernels/core/profile.h"

namespace braid {

namespace cpu {
decltype(braid::adamw_update) adamw_update;
}
namespace cuda {
decltype(braid::adamw_update) adamw_update;
}

void adamw_update(Context& ctx, AdamWState state, Tensor rounded, const Tensor& gradient, const AdamWStep& step) {
  const OperatorScope scope(ctx, "adamw_update");
  const auto& [weight, m, v] = state;
  const int64_t n = weight.dim(0);
  check_shapes({{"weight", weight, {n}}, {"m", m, {n}}, {"v", v, {n}}, {"gradient", gradient, {n}}});
  if (rounded.defined()) check_shapes({{"weight", weight, {n}}, {"rounded", rounded, {n}}});
  check_dtype(weight.dtype(), {{"gradient", gradient}});
  if (!ctx.on_cuda() || m.dtype() != DType::kBF16) check_dtype(weight.dtype(), {{"m", m}});
  check_dtype(m.dtype(), {{"v", v}});
  if (n == 0) return;
  assert(step.step >= 1);
  if (ctx.counts_only()) return;
  if constexpr (kWithCuda) {
    if (ctx.on_cuda()) return cuda::adamw_update(ctx, state, rounded, gradient, step);
  }
  cpu::adamw_update(ctx, state, rounded, gradient, step);
}

}  // namespace braid
