// Dense operators: products with FLOP/s, passes over memory with bytes/s.
#include "kernels/embedding.h"
#include "kernels/lm_head_loss.h"
#include "kernels/matmul.h"
#include "kernels/rms_norm.h"
#include "tests/bench/bench.h"

namespace braid::bench {
namespace {

// Uniform in [0, end).
Tensor random_ids(Tensors& t, int64_t count, int64_t end) {
  Tensor ids = t.empty({count}, DType::kI64);
  for (int64_t i = 0; i < count; ++i) ids.data<int64_t>()[i] = philox(1, 2, i)[0] % end;
  return ids;
}

void matmul(benchmark::State& state) {
  Tensors t;
  const int64_t M = state.range(0), N = state.range(1), K = state.range(2);
  const auto transpose_a = state.range(3) ? Transpose::kYes : Transpose::kNo;
  const auto transpose_b = state.range(4) ? Transpose::kYes : Transpose::kNo;
  Tensor a = t.normal(state.range(3) ? Shape{K, M} : Shape{M, K}),
         b = t.normal(state.range(4) ? Shape{N, K} : Shape{K, N});
  Tensor c = t.empty({M, N});
  for (auto _ : state) matmul(t.ctx(), c, a, transpose_a, b, transpose_b);
  set_flops(state, 2.0 * static_cast<double>(M * N * K));
}

void matmul_sizes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"M", "N", "K", "tA", "tB"})->UseRealTime()->Unit(benchmark::kMillisecond);
  for (int64_t size : {256, 1024, 2048}) b->Args({size, size, size, 0, 0});
  b->Args({2048, 512, 512, 0, 1})->Args({2048, 512, 512, 0, 0})->Args({512, 512, 2048, 1, 0});  // a layer's three
  b->Args({4096, 4, 512, 0, 1})->Args({16, 4096, 1024, 0, 1});                                  // narrow and flat
}
BENCHMARK(matmul)->Apply(matmul_sizes);

struct Norm {
  Tensors t;
  int64_t N, C;
  Tensor x = t.normal({N, C}), delta = t.normal({N, C}), weight = t.normal({C}, 0.1);
  Tensor y = t.empty({N, C}), sum = t.empty({N, C}), rstd = t.empty({N});
  explicit Norm(const benchmark::State& state) : N(state.range(0)), C(state.range(1)) {
    add_rms_norm_forward(t.ctx(), y, sum, rstd, x, delta, weight, 1e-6);
  }
};

void add_rms_norm_forward(benchmark::State& state) {
  Norm n(state);
  for (auto _ : state) add_rms_norm_forward(n.t.ctx(), n.y, n.sum, n.rstd, n.x, n.delta, n.weight, 1e-6);
  set_tokens(state, n.N);
  state.SetBytesProcessed(state.iterations() * 4 * n.x.bytes());
}

void rms_norm_backward(benchmark::State& state) {
  Norm n(state);
  Tensor d_x = n.t.empty({n.N, n.C}), d_weight = n.t.normal({n.C}), d_y = n.t.normal({n.N, n.C});
  for (auto _ : state) rms_norm_backward(n.t.ctx(), d_x, d_weight, d_y, n.sum, n.weight, n.rstd);
  set_tokens(state, n.N);
  state.SetBytesProcessed(state.iterations() * 3 * n.x.bytes());
}
BENCHMARK(add_rms_norm_forward)->ArgNames({"N", "C"})->Args({4096, 1024})->UseRealTime();
BENCHMARK(rms_norm_backward)->ArgNames({"N", "C"})->Args({4096, 1024})->UseRealTime();

struct Head {
  Tensors t;
  int64_t N, C, V;
  Tensor hidden = t.normal({N, C}), weight = t.normal({V, C}, 0.02), targets = random_ids(t, N, V);
  Tensor loss_sum = t.empty({1}, DType::kF64);
  explicit Head(const benchmark::State& state) : N(state.range(0)), C(state.range(1)), V(state.range(2)) {}
  double forward_flops() const { return 2.0 * static_cast<double>(N * C * V); }
};

void lm_head_loss_forward(benchmark::State& state) {
  Head h(state);
  for (auto _ : state) lm_head_loss_forward(h.t.ctx(), h.loss_sum, h.hidden, h.weight, h.targets);
  set_tokens(state, h.N);
  set_flops(state, h.forward_flops());
}

void lm_head_loss_forward_backward(benchmark::State& state) {
  Head h(state);
  Tensor d_hidden = h.t.empty({h.N, h.C}), d_weight = h.t.normal({h.V, h.C});
  for (auto _ : state)
    lm_head_loss_forward_backward(h.t.ctx(), h.loss_sum, d_hidden, d_weight, h.hidden, h.weight, h.targets, 1e-3);
  set_tokens(state, h.N);
  set_flops(state, 3 * h.forward_flops());
}

void head_sizes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"N", "C", "V"})->Args({1024, 512, 8192})->UseRealTime()->Unit(benchmark::kMillisecond);
}
BENCHMARK(lm_head_loss_forward)->Apply(head_sizes);
BENCHMARK(lm_head_loss_forward_backward)->Apply(head_sizes);

void embedding_forward(benchmark::State& state) {
  Tensors t;
  const int64_t N = state.range(0), C = state.range(1), V = state.range(2);
  Tensor y = t.empty({N, C}), ids = random_ids(t, N, V), table = t.normal({V, C});
  for (auto _ : state) embedding_forward(t.ctx(), y, ids, table);
  set_tokens(state, N);
  state.SetBytesProcessed(state.iterations() * 2 * y.bytes());
}

void embedding_backward(benchmark::State& state) {
  Tensors t;
  const int64_t N = state.range(0), C = state.range(1), V = state.range(2);
  Tensor d_table = t.normal({V, C}), d_y = t.normal({N, C}), ids = random_ids(t, N, V);
  for (auto _ : state) embedding_backward(t.ctx(), d_table, d_y, ids);
  set_tokens(state, N);
  state.SetBytesProcessed(state.iterations() * 3 * d_y.bytes());
}
BENCHMARK(embedding_forward)->ArgNames({"N", "C", "V"})->Args({4096, 512, 32768})->UseRealTime();
BENCHMARK(embedding_backward)->ArgNames({"N", "C", "V"})->Args({4096, 512, 32768})->UseRealTime();

}  // namespace
}  // namespace braid::bench
