// MoE operators. items/s are tokens for routing, rows for the experts.
#include <vector>

#include "kernels/expert_rows.h"
#include "kernels/experts.h"
#include "kernels/router.h"
#include "kernels/swiglu.h"
#include "tests/bench/bench.h"

namespace braid::bench {
namespace {

// N tokens of width C, K of E experts each; near-uniform random routing.
struct Routing {
  Tensors tensors;
  int64_t N, E, K;
  Segments segments = Segments::whole_rows(1, N);
  Tensor logits = tensors.normal({N, E});
  RouterOutputs out{.expert_id = tensors.empty({N, K}, DType::kI32),
                    .gate = tensors.empty({N, K}),
                    .prob = tensors.empty({N, E}),
                    .lse = tensors.empty({N}),
                    .counts = tensors.empty({1, E}, DType::kI64),
                    .prob_sum = tensors.empty({1, E}, DType::kF64),
                    .z_sum = tensors.empty({1}, DType::kF64)};
  ExpertOrder order{.row_of_slot = tensors.empty({N, K}, DType::kI32),
                    .slot_of_row = tensors.empty({N * K}, DType::kI32),
                    .rows_per_expert = tensors.empty({E}, DType::kI64)};

  explicit Routing(const benchmark::State& state) : N(state.range(0)), E(state.range(1)), K(state.range(2)) {
    router_forward(tensors.ctx(), out, logits, segments, GateNorm::kTopK);
    expert_order(tensors.ctx(), order, out.expert_id);
  }
};

void router_forward(benchmark::State& state) {
  Routing r(state);
  for (auto _ : state) router_forward(r.tensors.ctx(), r.out, r.logits, r.segments, GateNorm::kTopK);
  set_tokens(state, r.N);
}

void router_backward(benchmark::State& state) {
  Routing r(state);
  Tensor d_logits = r.tensors.empty({r.N, r.E}), d_gate = r.tensors.normal({r.N, r.K});
  Tensor d_prob = r.tensors.empty({1, r.E}, DType::kF64);
  fill_normal(r.tensors.ctx(), d_prob, 0, 1, 1, 1, 0);
  for (auto _ : state)
    router_backward(r.tensors.ctx(), d_logits, d_gate, d_prob, 1e-3, r.out, r.segments, GateNorm::kTopK);
  set_tokens(state, r.N);
}

void expert_order(benchmark::State& state) {
  Routing r(state);
  for (auto _ : state) expert_order(r.tensors.ctx(), r.order, r.out.expert_id);
  set_tokens(state, r.N);
}

constexpr int64_t kMoveWidth = 1024;

void gather_rows(benchmark::State& state) {
  Routing r(state);
  Tensor x = r.tensors.normal({r.N, kMoveWidth}), rows = r.tensors.empty({r.N * r.K, kMoveWidth});
  for (auto _ : state) gather_rows(r.tensors.ctx(), rows, x, r.order);
  set_tokens(state, r.N);
  state.SetBytesProcessed(state.iterations() * 2 * rows.bytes());
}

void combine_rows(benchmark::State& state) {
  Routing r(state);
  Tensor y = r.tensors.empty({r.N, kMoveWidth}), rows = r.tensors.normal({r.N * r.K, kMoveWidth});
  for (auto _ : state) combine_rows(r.tensors.ctx(), y, rows, r.order);
  set_tokens(state, r.N);
  state.SetBytesProcessed(state.iterations() * (rows.bytes() + y.bytes()));
}

void routing_sizes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"N", "E", "K"})->Args({4096, 64, 8})->Args({4096, 512, 10})->UseRealTime();
}
BENCHMARK(router_forward)->Apply(routing_sizes);
BENCHMARK(router_backward)->Apply(routing_sizes);
BENCHMARK(expert_order)->Apply(routing_sizes);
BENCHMARK(gather_rows)->ArgNames({"N", "E", "K"})->Args({1024, 64, 8})->UseRealTime();
BENCHMARK(combine_rows)->ArgNames({"N", "E", "K"})->Args({1024, 64, 8})->UseRealTime();

enum Load : int64_t { kEven, kUneven, kOneExpert };

struct ExpertProblem {
  Tensors tensors;
  int64_t El, R, C, F;
  Tensor rows_per_expert = tensors.empty({El}, DType::kI64);
  Tensor x = tensors.normal({R, C}), row_gate = tensors.uniform({R}, 0, 1);
  ExpertWeights weights{tensors.normal({El, 2 * F, C}, 0.02), tensors.normal({El, C, F}, 0.02)};
  Tensor out = tensors.empty({R, C}), gate_up_out = tensors.empty({R, 2 * F});

  explicit ExpertProblem(const benchmark::State& state)
      : El(state.range(0)), R(state.range(1)), C(state.range(2)), F(state.range(3)) {
    int64_t* rows = rows_per_expert.data<int64_t>();
    for (int64_t e = 0, left = R; e < El; left -= rows[e++]) {
      switch (state.range(4)) {
        case kEven: rows[e] = R * (e + 1) / El - R * e / El; break;
        case kUneven: rows[e] = e + 1 < El ? left / 4 : left; break;  // geometric: most experts get none
        case kOneExpert: rows[e] = e == El / 2 ? R : 0; break;
      }
    }
    experts_forward(tensors.ctx(), out, gate_up_out, x, row_gate, rows_per_expert, weights);
  }
  double forward_flops() const { return 2.0 * static_cast<double>(R * 3 * F * C); }
};

void experts_forward(benchmark::State& state) {
  ExpertProblem p(state);
  for (auto _ : state)
    experts_forward(p.tensors.ctx(), p.out, p.gate_up_out, p.x, p.row_gate, p.rows_per_expert, p.weights);
  set_tokens(state, p.R);
  set_flops(state, p.forward_flops());
}

void experts_backward(benchmark::State& state) {
  ExpertProblem p(state);
  Tensor d_x = p.tensors.empty({p.R, p.C}), d_row_gate = p.tensors.empty({p.R}), d_out = p.tensors.normal({p.R, p.C});
  ExpertWeights d_weights{p.tensors.normal(p.weights.gate_up.shape()), p.tensors.normal(p.weights.down.shape())};
  for (auto _ : state)
    experts_backward(p.tensors.ctx(), d_x, d_row_gate, d_weights, d_out, p.x, p.row_gate, p.gate_up_out,
                     p.rows_per_expert, p.weights);
  set_tokens(state, p.R);
  set_flops(state, 2 * p.forward_flops());
}

void expert_sizes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"El", "R", "C", "F", "load"})->UseRealTime()->Unit(benchmark::kMillisecond);
  for (int64_t load : {kEven, kUneven, kOneExpert}) b->Args({64, 4096, 512, 128, load});
  b->Args({64, 640, 256, 64, kEven})->Args({16, 1600, 2048, 512, kEven});
}
BENCHMARK(experts_forward)->Apply(expert_sizes);
BENCHMARK(experts_backward)->Apply(expert_sizes);

struct SharedExpert {
  Tensors tensors;
  int64_t N, F;
  Tensor a = tensors.normal({N, F}), b = tensors.normal({N, F}), gate = tensors.normal({N, 1});
  Tensor h = tensors.empty({N, F});
  explicit SharedExpert(const benchmark::State& state) : N(state.range(0)), F(state.range(1)) {}
};

void swiglu_forward(benchmark::State& state) {
  SharedExpert s(state);
  for (auto _ : state) swiglu_forward(s.tensors.ctx(), s.h, s.a, s.b, s.gate);
  set_tokens(state, s.N);
}

void swiglu_backward(benchmark::State& state) {
  SharedExpert s(state);
  Tensor d_a = s.tensors.empty({s.N, s.F}), d_b = s.tensors.empty({s.N, s.F}), d_gate = s.tensors.empty({s.N, 1});
  Tensor d_h = s.tensors.normal({s.N, s.F});
  for (auto _ : state) swiglu_backward(s.tensors.ctx(), d_a, d_b, d_gate, d_h, s.a, s.b, s.gate);
  set_tokens(state, s.N);
}
BENCHMARK(swiglu_forward)->ArgNames({"N", "F"})->Args({4096, 512})->UseRealTime();
BENCHMARK(swiglu_backward)->ArgNames({"N", "F"})->Args({4096, 512})->UseRealTime();

}  // namespace
}  // namespace braid::bench
