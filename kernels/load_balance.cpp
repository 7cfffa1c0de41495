#include "kernels/load_balance.h"

#include "kernels/core/profile.h"
#include "kernels/on_device.h"

namespace braid {

namespace cpu {
decltype(braid::add_counts) add_counts;
decltype(braid::load_balance) load_balance;
}  // namespace cpu
namespace cuda {
decltype(braid::add_counts) add_counts;
decltype(braid::load_balance) load_balance;
}  // namespace cuda

void add_counts(Context& ctx, Tensor totals, const Tensor& counts) {
  const OperatorScope scope(ctx, "add_counts");
  const int64_t B = counts.dim(0), E = counts.dim(1);
  check_shapes({{"totals", totals, {E}}, {"counts", counts, {B, E}}});
  check_dtype(DType::kI64, {{"totals", totals}, {"counts", counts}});
  if (ctx.counts_only()) return;
  on_device<cpu::add_counts, cuda::add_counts>(ctx, totals, counts);
}

void load_balance(Context& ctx, Tensor d_prob, Tensor sums, const Tensor& counts, const RouterOutputs& router,
                  double loss_weight, double per_token) {
  const OperatorScope scope(ctx, "load_balance");
  const int64_t B = router.counts.dim(0), E = router.counts.dim(1), loads = counts.dim(0) == 1 ? 1 : B;
  check_shapes({{"d_prob", d_prob, {B, E}},
                {"sums", sums, {2}},
                {"counts", counts, {loads, E}},
                {"prob_sum", router.prob_sum, {B, E}},
                {"z_sum", router.z_sum, {B}}});
  check_dtype(DType::kI64, {{"counts", counts}});
  check_dtype(DType::kF64,
              {{"d_prob", d_prob}, {"sums", sums}, {"prob_sum", router.prob_sum}, {"z_sum", router.z_sum}});
  if (ctx.counts_only()) return;
  on_device<cpu::load_balance, cuda::load_balance>(ctx, d_prob, sums, counts, router, loss_weight, per_token);
}

}  // namespace braid
