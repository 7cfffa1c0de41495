#include <cstring>

#include "kernels/core/float_types.h"

namespace braid {
namespace {

template <class Out, class In>
void convert_elements(Out* out, const In* in, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if constexpr (std::is_same_v<Out, BFloat16>) out[i] = BFloat16(static_cast<float>(in[i]));
    else if constexpr (std::is_same_v<In, double>) out[i] = static_cast<Out>(in[i]);
    else out[i] = static_cast<Out>(static_cast<float>(in[i]));
  }
}

template <class Out>
void convert_to(Out* out, const Tensor& in) {
  switch (in.dtype()) {
    case DType::kF64: return convert_elements(out, in.data<double>(), in.numel());
    case DType::kF32: return convert_elements(out, in.data<float>(), in.numel());
    case DType::kBF16: return convert_elements(out, in.data<BFloat16>(), in.numel());
    case DType::kF16: return convert_elements(out, in.data<Float16>(), in.numel());
    default: throw DTypeError(concat("convert: expected floating-point input, got ", name_of(in.dtype())));
  }
}

}  // namespace

void convert(Tensor out, const Tensor& in) {
  check<ShapeError>(out.numel() == in.numel(), "convert: out has ", out.numel(), " elements, in has ", in.numel());
  if (in.numel() == 0) return;
  if (out.dtype() == in.dtype()) {
    std::memcpy(out.raw(), in.raw(), static_cast<size_t>(in.bytes()));
    return;
  }
  switch (out.dtype()) {
    case DType::kF64: return convert_to(out.data<double>(), in);
    case DType::kF32: return convert_to(out.data<float>(), in);
    case DType::kBF16: return convert_to(out.data<BFloat16>(), in);
    default: throw DTypeError(concat("convert: out is ", name_of(out.dtype()), ", expected F64, F32 or BF16"));
  }
}

}  // namespace braid
