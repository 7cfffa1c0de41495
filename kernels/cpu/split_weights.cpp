#include "kernels/split_weights.h"

#include "kernels/cpu/split_weights.h"

namespace braid::cpu {
namespace {

constexpr int64_t kTile = 4096;

template <class Body>
void for_each_tile(int64_t count, Body&& body) {
#pragma omp parallel for schedule(static)
  for (int64_t begin = 0; begin < count; begin += kTile) body(begin, std::min(kTile, count - begin));
}

}  // namespace

void split_weights(Context&, Tensor weight, Tensor low, const Tensor& master) {
  BFloat16* high = weight.data<BFloat16>();
  auto* rest = static_cast<int16_t*>(low.raw());
  const float* from = master.data<float>();
  for_each_tile(master.numel(), [=](int64_t begin, int64_t n) {
    int16_t dropped[kTile];
    split_row(high + begin, rest ? rest + begin : dropped, from + begin, n);
  });
}

void join_weights(Context&, Tensor master, const Tensor& weight, const Tensor& low) {
  float* to = master.data<float>();
  const BFloat16* high = weight.data<BFloat16>();
  const auto* rest = static_cast<const int16_t*>(low.raw());
  for_each_tile(master.numel(), [=](int64_t begin, int64_t n) { join_row(to + begin, high + begin, rest + begin, n); });
}

}  // namespace braid::cpu
