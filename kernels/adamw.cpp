#include "kernels/adamw.h"

#include "kernels/core/memory.h"
#include "kernels/core/moment_codes.h"
#include "kernels/core/profile.h"
#include "kernels/on_device.h"
#include "kernels/split_weights.h"

namespace braid {

namespace cpu {
decltype(braid::adamw_update) adamw_update;
}
namespace cuda {
decltype(braid::adamw_update) adamw_update;
}

void adamw_update(Context& ctx, AdamWState state, const Tensor& gradient, const AdamWStep& step) {
  const OperatorScope scope(ctx, "adamw_update");
  const auto& [weight, m, v, low, m_scale, v_scale] = state;
  const int64_t n = weight.dim(0);
  check_shapes({{"weight", weight, {n}}, {"m", m, {n}}, {"v", v, {n}}, {"gradient", gradient, {n}}});
  check_low_bits(weight, low);
  const DType wide = wide_dtype(weight.dtype());
  if (!ctx.on_cuda() || gradient.dtype() != weight.dtype()) check_dtype(wide, {{"gradient", gradient}});
  if (m.dtype() == DType::kU8) {
    const int64_t blocks = round_up(n, MomentCodes::kBlock) / MomentCodes::kBlock;
    check_shapes({{"m_scale", m_scale, {blocks}}, {"v_scale", v_scale, {blocks}}});
    check_dtype(wide, {{"m_scale", m_scale}, {"v_scale", v_scale}});
    check<ShapeError>(step.first % MomentCodes::kBlock == 0, "m: begins inside a block, at element ", step.first);
  } else if (!ctx.on_cuda() || m.dtype() != DType::kBF16) {
    check_dtype(wide, {{"m", m}});
  }
  check_dtype(m.dtype(), {{"v", v}});
  if (n == 0) return;
  assert(step.step >= 1);
  if (ctx.counts_only()) return;
  on_device<cpu::adamw_update, cuda::adamw_update>(ctx, state, gradient, step);
}

}  // namespace braid
