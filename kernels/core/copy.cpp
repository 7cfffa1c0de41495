#include "kernels/core/copy.h"

#include <cstring>

#include "kernels/build_config.h"
#include "kernels/core/float_types.h"
#include "kernels/core/profile.h"

namespace braid {

namespace cuda {
decltype(braid::fill_zero) fill_zero;
decltype(braid::copy) copy;
decltype(braid::add) add;
void convert(Context& ctx, Tensor to, const Tensor& from);
}  // namespace cuda

void fill_zero(Context& ctx, Tensor x) {
  const OperatorScope scope(ctx, "fill_zero");
  if (x.bytes() == 0 || ctx.counts_only()) return;
  if constexpr (kWithCuda) {
    if (x.device() == Device::kCuda) return cuda::fill_zero(ctx, x);
  }
  std::memset(x.raw(), 0, static_cast<size_t>(x.bytes()));
}

void copy(Context& ctx, Tensor to, const Tensor& from) {
  const OperatorScope scope(ctx, "copy");
  check_dtype(from.dtype(), {{"to", to}});
  check<ShapeError>(to.numel() == from.numel(), "to: expected ", from.numel(), " elements, got ", to.numel());
  if (from.bytes() == 0 || ctx.counts_only()) return;
  if constexpr (kWithCuda) {
    if (to.device() == Device::kCuda || from.device() == Device::kCuda) return cuda::copy(ctx, to, from);
  }
  std::memmove(to.raw(), from.raw(), static_cast<size_t>(from.bytes()));
}

namespace {

template <class T>
void add_numbers(T* to, const T* from, int64_t count) {
#pragma omp parallel for simd
  for (int64_t i = 0; i < count; ++i) to[i] += from[i];
}

}  // namespace

void add(Context& ctx, Tensor to, const Tensor& from) {
  const OperatorScope scope(ctx, "add");
  check_shapes({{"to", to, from.shape()}});
  check_dtype(from.dtype(), {{"to", to}});
  if (from.bytes() == 0 || ctx.counts_only()) return;
  if constexpr (kWithCuda) {
    if (to.device() == Device::kCuda) return cuda::add(ctx, to, from);
  }
  switch (to.dtype()) {
    case DType::kF32: return add_numbers(to.data<float>(), from.data<float>(), to.numel());
    case DType::kF64: return add_numbers(to.data<double>(), from.data<double>(), to.numel());
    default: throw DTypeError(concat("to: expected F32 or F64, got ", name_of(to.dtype())));
  }
}

void convert(Context& ctx, Tensor to, const Tensor& from) {
  const OperatorScope scope(ctx, "convert");
  check_shapes({{"to", to, from.shape()}, {"from", from, from.shape()}});
  if (from.bytes() == 0 || ctx.counts_only()) return;
  if constexpr (kWithCuda) {
    if (to.device() == Device::kCuda) return cuda::convert(ctx, to, from);
  }
  convert(to, from);
}

}  // namespace braid
