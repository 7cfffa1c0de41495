#include "kernels/core/implementation.h"

#include "kernels/cuda/row_access.cuh"

namespace braid::cuda {

Implementation row_pass_implementation(const Context&, DType activation, int64_t width) {
  auto implementation = [&]<class T>(T) {
    int64_t at_once = 0;
    dispatch_width<T>(width, {}, [&]<class V> { at_once = V::kSize; });
    if (at_once > 1) return Implementation{"16 bytes at a time", ""};
    return Implementation{"an element at a time", concat("rows of ", width, " are no multiple of 16 bytes")};
  };
  return activation == DType::kBF16 ? implementation(bf16()) : implementation(float());
}

}  // namespace braid::cuda
