#include "kernels/split_weights.h"

#include "kernels/core/copy.h"
#include "kernels/core/profile.h"
#include "kernels/on_device.h"

namespace braid {

namespace cpu {
decltype(braid::split_weights) split_weights;
decltype(braid::join_weights) join_weights;
}  // namespace cpu
namespace cuda {
decltype(braid::split_weights) split_weights;
decltype(braid::join_weights) join_weights;
}  // namespace cuda

void check_low_bits(const Tensor& weight, const Tensor& low) {
  const bool split = weight.dtype() == DType::kBF16;
  check<DTypeError>(split || !low.defined(), "low: none beside a weight in ", name_of(weight.dtype()));
  check<DTypeError>(!split || low.defined(), "low: missing beside a weight in BF16");
  if (!split) return;
  check_shapes({{"weight", weight, weight.shape()}, {"low", low, shape_of_low_bits(weight.shape())}});
  check_dtype(DType::kU8, {{"low", low}});
}

void split_weights(Context& ctx, Tensor weight, Tensor low, const Tensor& master) {
  if (weight.dtype() == master.dtype()) return copy(ctx, weight, master);
  const OperatorScope scope(ctx, "split_weights");
  check_shapes({{"weight", weight, master.shape()}, {"master", master, master.shape()}});
  check_dtype(DType::kBF16, {{"weight", weight}});
  check_dtype(DType::kF32, {{"master", master}});
  if (low.defined()) check_low_bits(weight, low);
  if (master.numel() == 0 || ctx.counts_only()) return;
  on_device<cpu::split_weights, cuda::split_weights>(ctx, weight, low, master);
}

void join_weights(Context& ctx, Tensor master, const Tensor& weight, const Tensor& low) {
  check_low_bits(weight, low);
  if (!low.defined()) return copy(ctx, master, weight);
  const OperatorScope scope(ctx, "join_weights");
  check_shapes({{"master", master, weight.shape()}, {"weight", weight, weight.shape()}});
  check_dtype(DType::kF32, {{"master", master}});
  if (master.numel() == 0 || ctx.counts_only()) return;
  on_device<cpu::join_weights, cuda::join_weights>(ctx, master, weight, low);
}

}  // namespace braid
