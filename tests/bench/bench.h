#pragma once

#include <benchmark/benchmark.h>

#include "kernels/core/context.h"
#include "kernels/core/tensor.h"
#include "kernels/random.h"

namespace braid::bench {

// The tensors of one benchmark, in fp32. Inputs are random: zeros would flatter every operator that multiplies.
class Tensors {
 public:
  Context& ctx() { return ctx_; }
  Tensor empty(Shape shape, DType dtype = DType::kF32) { return memory_.tensor(shape, dtype); }
  Tensor normal(Shape shape, double stddev = 1, double mean = 0) {
    Tensor t = empty(shape);
    fill_normal(ctx_, t, mean, stddev, ++seed_, 0, 0);
    return t;
  }
  Tensor uniform(Shape shape, double low, double high) {
    Tensor t = empty(shape);
    fill_uniform(ctx_, t, low, high, ++seed_, 0, 0);
    return t;
  }

 private:
  Context ctx_ = Context::cpu();
  Scratch memory_{ctx_};
  uint64_t seed_ = 0;
};

inline void set_tokens(benchmark::State& state, int64_t tokens) {
  state.SetItemsProcessed(state.iterations() * tokens);
}
inline void set_flops(benchmark::State& state, double flops) {
  state.counters["FLOP/s"] =
      benchmark::Counter(flops * static_cast<double>(state.iterations()), benchmark::Counter::kIsRate);
}

}  // namespace braid::bench
