// Optimizer operators; bound by memory, so bytes/s is the number to watch.
#include "kernels/adamw.h"
#include "kernels/sum_squares.h"
#include "tests/bench/bench.h"

namespace braid::bench {
namespace {

void adamw_update(benchmark::State& state) {
  Tensors t;
  const int64_t n = state.range(0);
  Tensor weight = t.normal({n}), m = t.normal({n}, 1e-3), v = t.uniform({n}, 1e-6, 1e-5),
         gradient = t.normal({n}, 1e-3);
  AdamWStep step{.lr = 1e-4, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .gradient_scale = 0.7};
  for (auto _ : state) {
    ++step.step;
    adamw_update(t.ctx(), {weight, m, v}, {}, gradient, step);
  }
  state.SetItemsProcessed(state.iterations() * n);
  state.SetBytesProcessed(state.iterations() * 7 * weight.bytes());  // reads four, writes three
}
BENCHMARK(adamw_update)->Arg(1 << 16)->Arg(1 << 24)->UseRealTime();

void sum_squares(benchmark::State& state) {
  Tensors t;
  Tensor x = t.normal({state.range(0)}), out = t.empty({1}, DType::kF64);
  for (auto _ : state) sum_squares(t.ctx(), out, x);
  state.SetBytesProcessed(state.iterations() * x.bytes());
}
BENCHMARK(sum_squares)->Arg(1 << 16)->Arg(1 << 24)->UseRealTime();

void fill_normal(benchmark::State& state) {
  Tensors t;
  Tensor x = t.empty({state.range(0)});
  for (auto _ : state) fill_normal(t.ctx(), x, 0, 1, 1, 2, 0);
  state.SetItemsProcessed(state.iterations() * x.numel());
}
BENCHMARK(fill_normal)->Arg(1 << 20)->UseRealTime();

}  // namespace
}  // namespace braid::bench
