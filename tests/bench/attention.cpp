// Gated attention. items/s are tokens; they fall as the sequence grows, because the work per token does not stay the
// same: FLOP/s is the number to compare.
#include <vector>

#include "kernels/attention.h"
#include "kernels/attention_inputs.h"
#include "tests/bench/bench.h"

namespace braid::bench {
namespace {

constexpr AttentionDims kDims{
    .query_heads = 4, .kv_heads = 1, .head_dim = 256, .rotary_dim = 64, .rope_theta = 1e7, .eps = 1e-6};

// One row of T tokens in documents of equal length.
struct Attention {
  Tensors t;
  int64_t T, document;
  Segments segments = Segments::packed(std::vector<int64_t>(T / document, document));
  AttentionProjections x{t.normal({T, kDims.query_heads, 2, kDims.head_dim}),
                         t.normal({T, kDims.kv_heads, kDims.head_dim})};
  AttentionInputWeights weights{t.normal({kDims.head_dim}, 0.1), t.normal({kDims.head_dim}, 0.1)};
  AttentionInputs inputs{t.empty({T, kDims.query_heads, kDims.head_dim}), t.empty({T, kDims.kv_heads, kDims.head_dim}),
                         t.empty({T, kDims.query_heads}), t.empty({T, kDims.kv_heads})};
  Tensor v = t.normal({T, kDims.kv_heads, kDims.head_dim});
  AttentionTensors in{inputs.q, inputs.k, v, x.q_gate};
  AttentionOutputs out{t.empty({T, kDims.query_heads, kDims.head_dim}), t.empty({T, kDims.query_heads, kDims.head_dim}),
                       t.empty({T, kDims.query_heads})};

  explicit Attention(const benchmark::State& state) : T(state.range(0)), document(state.range(1)) {
    attention_inputs_forward(t.ctx(), inputs, x, weights, segments, kDims);
    attention_forward(t.ctx(), out, in, segments);
  }
  // Two products with Dh per visible pair.
  double forward_flops() const {
    const double pairs = static_cast<double>(T) * (static_cast<double>(document) + 1) / 2;
    return 4 * pairs * static_cast<double>(kDims.query_heads * kDims.head_dim);
  }
};

void attention_forward(benchmark::State& state) {
  Attention a(state);
  for (auto _ : state) attention_forward(a.t.ctx(), a.out, a.in, a.segments);
  set_tokens(state, a.T);
  set_flops(state, a.forward_flops());
}

void attention_backward(benchmark::State& state) {
  Attention a(state);
  AttentionGradients d_in{a.t.empty(a.in.q.shape()), a.t.empty(a.in.k.shape()), a.t.empty(a.in.v.shape()),
                          a.t.empty(a.in.q_gate.shape())};
  Tensor d_y = a.t.normal(a.out.y.shape());
  for (auto _ : state) attention_backward(a.t.ctx(), d_in, d_y, a.in, a.out, a.segments);
  set_tokens(state, a.T);
  set_flops(state, 2.5 * a.forward_flops());  // five products instead of two
}

void attention_inputs_forward(benchmark::State& state) {
  Attention a(state);
  for (auto _ : state) attention_inputs_forward(a.t.ctx(), a.inputs, a.x, a.weights, a.segments, kDims);
  set_tokens(state, a.T);
}

void attention_inputs_backward(benchmark::State& state) {
  Attention a(state);
  AttentionProjections d_x{a.t.empty(a.x.q_gate.shape()), a.t.empty(a.x.k.shape())};
  AttentionInputWeights d_weights{a.t.normal({kDims.head_dim}), a.t.normal({kDims.head_dim})};
  Tensor d_q = a.t.normal(a.in.q.shape()), d_k = a.t.normal(a.in.k.shape());
  for (auto _ : state)
    attention_inputs_backward(a.t.ctx(), d_x, d_weights, d_q, d_k, a.inputs, a.x, a.weights, a.segments, kDims);
  set_tokens(state, a.T);
}

void lengths(benchmark::internal::Benchmark* b) {
  b->ArgNames({"T", "document"})->UseRealTime()->Unit(benchmark::kMillisecond);
  b->Args({512, 512})->Args({2048, 2048})->Args({8192, 8192})->Args({8192, 512});
}
void one_length(benchmark::internal::Benchmark* b) {
  b->ArgNames({"T", "document"})->Args({2048, 512})->UseRealTime()->Unit(benchmark::kMillisecond);
}
BENCHMARK(attention_forward)->Apply(lengths);
BENCHMARK(attention_backward)->Apply(lengths);
BENCHMARK(attention_inputs_forward)->Apply(one_length);
BENCHMARK(attention_inputs_backward)->Apply(one_length);

}  // namespace
}  // namespace braid::bench
