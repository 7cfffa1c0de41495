#include "kernels/adamw.h"
#include "kernels/sum_squares.h"
#include "trainer/bench/workbench.h"

namespace braid {

void bench_adamw(Workbench& b) {
  const int64_t n = b.options().shard_elements;
  const DType wide = wide_dtype(b.activation());
  const Tensor gradient = b.normal({n}, wide, 1e-3), weight = b.normal({n}, wide);
  // On the CPU the model computes with the weights themselves, and moments have their dtype.
  const Tensor rounded = b.ctx().on_cuda() ? b.empty({n}, DType::kBF16) : Tensor();
  const AdamWStep step = {
      .lr = 1e-4, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .gradient_scale = 0.7, .step = 2};
  std::vector<DType> moments = {wide};
  if (b.ctx().on_cuda()) moments.push_back(DType::kBF16);
  for (DType moment : moments) {
    const AdamWState state = {weight, b.normal({n}, moment, 1e-3), b.uniform({n}, moment, 1e-6, 1e-5)};
    const double bytes = 2 * double(weight.bytes()) + 4 * double(state.m.bytes()) + double(gradient.bytes()) +
                         (rounded.defined() ? double(rounded.bytes()) : 0);
    b.measure("adamw_update", concat(n, ", moments ", name_of(moment)), {.bytes = bytes},
              [&](int) { adamw_update(b.ctx(), state, rounded, gradient, step); });
  }
}

void bench_sum_squares(Workbench& b) {
  const int64_t n = b.options().shard_elements;
  const Tensor x = b.normal({n}, wide_dtype(b.activation()), 1e-3);
  Tensor sum = b.empty({1}, DType::kF64);
  b.measure("sum_squares", concat(n), {.bytes = double(x.bytes())}, [&](int) { sum_squares(b.ctx(), sum, x); });
}

}  // namespace braid
