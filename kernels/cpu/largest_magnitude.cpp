#include "kernels/largest_magnitude.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <type_traits>

#include "kernels/cpu/dispatch.h"

namespace braid::cpu {

// Without their signs floating-point numbers are ordered as their bits are, NaN above all: no order of comparing
// matters.
void largest_magnitude(Context&, Tensor out, const Tensor& x) {
  dispatch_float("x", x, [&]<class T> {
    using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
    const T* data = x.data<T>();
    const int64_t count = x.numel();
    Bits largest = 0;
#pragma omp parallel for simd schedule(static) reduction(max : largest)
    for (int64_t i = 0; i < count; ++i)
      largest = std::max(largest, std::bit_cast<Bits>(data[i]) & (std::numeric_limits<Bits>::max() >> 1));
    *out.data<double>() = double(std::bit_cast<T>(largest));
  });
}

}  // namespace braid::cpu
