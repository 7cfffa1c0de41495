#include "kernels/core/segments.h"
#include "kernels/expert_rows.h"
#include "kernels/experts.h"
#include "kernels/router.h"
#include "tests/kernels/cuda/bench.h"

// One mixture-of-experts layer on one GPU: 8 x 4096 tokens, hidden 2048, 512 experts of 512, 10 per token.
namespace braid {
namespace {

using bench::Bench;

constexpr int64_t B = 8, T = 4096, N = B * T, C = 2048, F = 512, E = 512, K = 10, R = N * K;

void router(Bench& bench, Segments& segments, ExpertOrder& order) {
  const DType wide = DType::kF32;
  const Bench::Tensors logits = bench.random({N, E}, wide);
  const Tensor d_gate = bench.random({N, K}, wide)[0], d_prob = bench.upload(std::vector<double>(B * E, 0.1), {B, E});
  Tensor d_logits = bench.empty({N, E}, DType::kBF16);
  const RouterOutputs out = {bench.empty({N, K}, DType::kI32), bench.empty({N, K}, wide),
                             bench.empty({N, E}, wide),        bench.empty({N}, wide),
                             bench.empty({B, E}, DType::kI64), bench.empty({B, E}, DType::kF64),
                             bench.empty({B}, DType::kF64)};
  bench.measure("router_forward", 8.0 * N * E, 0,
                [&](int turn) { router_forward(bench.ctx(), out, logits[turn], segments, GateNorm::kTopK); });
  bench.measure("router_backward", 6.0 * N * E, 0, [&](int) {
    router_backward(bench.ctx(), d_logits, d_gate, d_prob, 0.001, out, segments, GateNorm::kTopK);
  });
  order = {bench.empty({N, K}, DType::kI32), bench.empty({R}, DType::kI32), bench.empty({E}, DType::kI64)};
  bench.measure("expert_order", 12.0 * R, 0, [&](int) { expert_order(bench.ctx(), order, out.expert_id); });
}

void rows(Bench& bench, const ExpertOrder& order) {
  const Tensor x = bench.random({N, C}, DType::kBF16)[0];
  Tensor rows = bench.empty({R, C}, DType::kBF16), y = bench.empty({N, C}, DType::kBF16);
  bench.measure("gather_rows", 2.0 * C * (N + R), 0, [&](int) { gather_rows(bench.ctx(), rows, x, order); });
  bench.measure("combine_rows", 2.0 * C * (N + R), 0, [&](int) { combine_rows(bench.ctx(), y, rows, order); });
  const ExpertOrder per_pair = {order.row_of_slot.view({R, 1}), order.slot_of_row, order.rows_per_expert};
  const Tensor gate = bench.random({R, 1}, DType::kF32)[0];
  Tensor row_gate = bench.empty({R, 1}, DType::kF32);
  bench.measure("gather_rows, a number per pair", 12.0 * R, 0,
                [&](int) { gather_rows(bench.ctx(), row_gate, gate, per_pair); });
}

void experts(Bench& bench, const ExpertOrder& order) {
  const DType bf16 = DType::kBF16, wide = DType::kF32;
  const Tensor x = bench.random({R, C}, bf16)[0], d_out = bench.random({R, C}, bf16)[0];
  const Tensor row_gate = bench.uniform({R}, wide, 0, 0.2)[0];
  const ExpertWeights weights = {bench.random({E, 2 * F, C}, bf16, 0.02)[0], bench.random({E, C, F}, bf16, 0.02)[0]};
  const ExpertWeights d_weights = {bench.empty({E, 2 * F, C}, wide), bench.empty({E, C, F}, wide)};
  fill_zero(bench.ctx(), d_weights.gate_up);
  fill_zero(bench.ctx(), d_weights.down);
  Tensor out = bench.empty({R, C}, bf16), gate_up_out = bench.empty({R, 2 * F}, bf16);
  Tensor d_x = bench.empty({R, C}, bf16), d_row_gate = bench.empty({R}, wide);
  const double product = 2.0 * R * 3 * F * C, weight_bytes = 3.0 * E * F * C;
  bench.measure("experts_forward", 2.0 * weight_bytes + 2.0 * R * (2 * C + 2 * F), product, [&](int) {
    experts_forward(bench.ctx(), out, gate_up_out, x, row_gate, order.rows_per_expert, weights);
  });
  bench.measure("experts_backward", (2.0 + 8.0) * weight_bytes + 2.0 * R * (3 * C + 2 * F), 2 * product, [&](int) {
    experts_backward(bench.ctx(), d_x, d_row_gate, d_weights, d_out, x, row_gate, gate_up_out, order.rows_per_expert,
                     weights);
  });
}

}  // namespace
}  // namespace braid

int main() {
  using namespace braid;
  Bench bench;
  Segments segments = Segments::whole_rows(B, T);
  segments.upload(bench.ctx(),
                  {bench.empty({N + 1}, DType::kI32), bench.empty({N}, DType::kI32), bench.empty({N}, DType::kU8),
                   bench.empty({N + 1}, DType::kI32), bench.empty({N + 1}, DType::kI32)});
  ExpertOrder order;
  router(bench, segments, order);
  rows(bench, order);
  experts(bench, order);
  return 0;
}
