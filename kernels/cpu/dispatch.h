#pragma once

#include "kernels/core/tensor.h"

namespace braid::cpu {

// Calls body.template operator()<float>() or <double>() for the dtype of the data.
//   dispatch_float("x", x, [&]<class T> { ... });
template <class Body>
void dispatch_float(const char* name, const Tensor& tensor, Body&& body) {
  switch (tensor.dtype()) {
    case DType::kF32: return body.template operator()<float>();
    case DType::kF64: return body.template operator()<double>();
    default: throw DTypeError(concat(name, ": expected F32 or F64, got ", name_of(tensor.dtype())));
  }
}

}  // namespace braid::cpu
