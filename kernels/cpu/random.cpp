#include "kernels/random.h"

#include <cmath>
#include <numbers>

#include "kernels/cpu/dispatch.h"

namespace braid::cpu {
namespace {

template <class Value>
void fill(Tensor& x, uint64_t seed, uint64_t stream_id, int64_t first, Value value) {
  dispatch_float("x", x, [&]<class T> {
    T* data = x.data<T>();
    const int64_t count = x.numel();
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; ++i)
      data[i] = static_cast<T>(value(philox(seed, stream_id, static_cast<uint64_t>(first + i))));
  });
}

}  // namespace

// Box-Muller, one number per counter: the second one would tie neighbours together.
void fill_normal(Context&, Tensor x, double mean, double stddev, uint64_t seed, uint64_t stream_id, int64_t first) {
  fill(x, seed, stream_id, first, [=](const std::array<uint32_t, 4>& bits) {
    const double radius = std::sqrt(-2 * std::log(unit_interval(bits[0], bits[1])));
    return mean + stddev * radius * std::cos(2 * std::numbers::pi * unit_interval(bits[2], bits[3]));
  });
}

void fill_uniform(Context&, Tensor x, double low, double high, uint64_t seed, uint64_t stream_id, int64_t first) {
  fill(x, seed, stream_id, first,
       [=](const std::array<uint32_t, 4>& bits) { return low + (high - low) * unit_interval(bits[0], bits[1]); });
}

}  // namespace braid::cpu
