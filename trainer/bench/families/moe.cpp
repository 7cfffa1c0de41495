#include "kernels/core/copy.h"
#include "kernels/expert_rows.h"
#include "kernels/experts.h"
#include "kernels/load_balance.h"
#include "kernels/router.h"
#include "kernels/swiglu.h"
#include "trainer/bench/workbench.h"

// One mixture-of-experts layer on one GPU.
namespace braid {
namespace {

RouterOutputs empty_router(Workbench& b, int64_t E) {
  const int64_t N = b.num_tokens(), B = N / b.row_tokens(), K = b.model().num_experts_per_tok;
  const DType wide = wide_dtype(b.activation());
  return {b.empty({N, K}, DType::kI32), b.empty({N, K}, wide),        b.empty({N, E}, wide),    b.empty({N}, wide),
          b.empty({B, E}, DType::kI64), b.empty({B, E}, DType::kF64), b.empty({B}, DType::kF64)};
}

GateNorm gate_norm(const Workbench& b) { return b.model().norm_topk_prob ? GateNorm::kTopK : GateNorm::kNone; }

// Of random logits: nearly even.
RouterOutputs routed(Workbench& b, int64_t E) {
  const RouterOutputs out = empty_router(b, E);
  router_forward(b.ctx(), out, b.normal({b.num_tokens(), E}, wide_dtype(b.activation())), b.uploaded(b.whole_rows()),
                 gate_norm(b));
  return out;
}

ExpertOrder ordered(Workbench& b, const RouterOutputs& router, int64_t E) {
  const Shape pairs = router.expert_id.shape();
  const ExpertOrder order = {b.empty(pairs, DType::kI32), b.empty({pairs.numel()}, DType::kI32),
                             b.empty({E}, DType::kI64)};
  expert_order(b.ctx(), order, router.expert_id);
  return order;
}

void bench_experts_of(Workbench& b, int64_t E) {
  const int64_t C = b.model().hidden_size, F = b.model().moe_intermediate_size;
  const DType activation = b.activation(), wide = wide_dtype(activation);
  const ExpertOrder order = ordered(b, routed(b, E), E);
  const int64_t R = order.slot_of_row.numel();
  const Tensor x = b.normal({R, C}, activation), d_out = b.normal({R, C}, activation);
  const Tensor row_gate = b.uniform({R}, wide, 0, 0.2);
  const ExpertWeights weights = {b.normal({E, 2 * F, C}, activation, 0.02), b.normal({E, C, F}, activation, 0.02)};
  const ExpertWeights d_weights = {b.zeros({E, 2 * F, C}, wide), b.zeros({E, C, F}, wide)};
  Tensor out = b.empty({R, C}, activation), gate_up_out = b.normal({R, 2 * F}, activation);
  Tensor d_x = b.empty({R, C}, activation), d_row_gate = b.empty({R}, wide);
  const double product = 2.0 * double(R) * double(3 * F * C), a = b.activation_bytes();
  const double weight_bytes = double(weights.gate_up.bytes() + weights.down.bytes());
  const double d_weight_bytes = double(d_weights.gate_up.bytes() + d_weights.down.bytes());
  const std::string shape = concat("E ", E, ", ", R, " x ", C, ", F ", F);
  b.measure("experts_forward", shape, {.bytes = weight_bytes + a * double(R) * double(2 * C + 2 * F), .flop = product},
            [&](int) { experts_forward(b.ctx(), out, gate_up_out, x, row_gate, order.rows_per_expert, weights); });
  for (const auto& [accumulate, how] :
       {std::pair(Accumulate::kNo, ", gradients written"), std::pair(Accumulate::kYes, ", gradients added")}) {
    const double passes = accumulate == Accumulate::kYes ? 2 : 1;
    b.measure(
        "experts_backward", concat("E ", E, how),
        {.bytes = weight_bytes + passes * d_weight_bytes + a * double(R) * double(3 * C + 2 * F), .flop = 2 * product},
        [&, accumulate = accumulate](int) {
          experts_backward(b.ctx(), d_x, d_row_gate, d_weights, d_out, x, row_gate, gate_up_out, order.rows_per_expert,
                           weights, accumulate);
        });
  }
}

}  // namespace

void bench_router(Workbench& b) {
  const int64_t N = b.num_tokens(), E = b.model().num_experts, K = b.model().num_experts_per_tok;
  const int64_t B = N / b.row_tokens();
  const DType wide = wide_dtype(b.activation());
  const Segments segments = b.uploaded(b.whole_rows());
  const Workbench::Tensors logits = b.normals({N, E}, wide);
  const RouterOutputs out = routed(b, E);
  const Tensor d_gate = b.normal({N, K}, wide);
  const Tensor d_prob = b.filled(std::vector<double>(static_cast<size_t>(B * E), 0.1), {B, E});
  Tensor d_logits = b.empty({N, E}, b.activation());
  const double wide_bytes = double(logits[0].bytes());
  const std::string shape = concat(b.tokens_by(E), ", K ", K);
  b.measure("router_forward", shape, {.bytes = 2 * wide_bytes},
            [&](int turn) { router_forward(b.ctx(), out, logits[turn], segments, gate_norm(b)); });
  b.measure("router_backward", shape, {.bytes = wide_bytes + double(d_logits.bytes())},
            [&](int) { router_backward(b.ctx(), d_logits, d_gate, d_prob, 0.001, out, segments, gate_norm(b)); });
}

void bench_load_balance(Workbench& b) {
  const int64_t E = b.model().num_experts, B = b.num_tokens() / b.row_tokens();
  const RouterOutputs router = routed(b, E);
  Tensor d_prob = b.empty({B, E}, DType::kF64), sums = b.zeros({2}, DType::kF64), totals = b.zeros({E}, DType::kI64);
  const std::string shape = concat(B, " x ", E);
  const double numbers = 8.0 * double(B * E);
  b.measure("load_balance", shape, {.bytes = 3 * numbers},
            [&](int) { load_balance(b.ctx(), d_prob, sums, router.counts, router, 1e-3, 1e-4); });
  b.measure("add_counts", shape, {.bytes = numbers + 16.0 * double(E)},
            [&](int) { add_counts(b.ctx(), totals, router.counts); });
}

void bench_expert_rows(Workbench& b) {
  const int64_t N = b.num_tokens(), C = b.model().hidden_size, E = b.model().num_experts;
  const DType activation = b.activation(), wide = wide_dtype(activation);
  const RouterOutputs router = routed(b, E);
  const ExpertOrder order = ordered(b, router, E);
  const int64_t R = order.slot_of_row.numel();
  const Tensor x = b.normal({N, C}, activation);
  Tensor rows = b.normal({R, C}, activation), y = b.empty({N, C}, activation);
  const double narrow = double(x.bytes()), expanded = double(rows.bytes());
  b.measure("expert_order", concat(N, " x ", router.expert_id.dim(1), ", E ", E), {.bytes = 12.0 * double(R)},
            [&](int) { expert_order(b.ctx(), order, router.expert_id); });
  const std::string shape = concat(R, " x ", C);
  b.measure("gather_rows", shape, {.bytes = narrow + expanded}, [&](int) { gather_rows(b.ctx(), rows, x, order); });
  b.measure("combine_rows", shape, {.bytes = narrow + expanded}, [&](int) { combine_rows(b.ctx(), y, rows, order); });
  // A number per pair, as gates travel.
  const ExpertOrder per_pair = {order.row_of_slot.view({R, 1}), order.slot_of_row, order.rows_per_expert};
  const Tensor gate = b.normal({R, 1}, wide);
  Tensor row_gate = b.empty({R, 1}, wide);
  b.measure("gather_rows", concat(R, " x 1"), {.bytes = 12.0 * double(R)},
            [&](int) { gather_rows(b.ctx(), row_gate, gate, per_pair); });
  // Where tokens go on four ranks, and which of the pairs are of one.
  const int64_t K = router.expert_id.dim(1), S = std::min<int64_t>(K, 4), El = E / 4;
  Tensor place = b.empty({N, S}, DType::kI32), ids = b.empty({N, K}, DType::kI32);
  copy(b.ctx(), ids, router.expert_id);
  b.measure("token_places", concat(N, " x ", K, ", 4 ranks"), {.bytes = 4.0 * double(N * (K + S))},
            [&](int) { token_places(b.ctx(), place, router.expert_id, El, N, 1); });
  b.measure("local_expert_ids", concat(N, " x ", K), {.bytes = 8.0 * double(N * K)},
            [&](int) { local_expert_ids(b.ctx(), ids, 0, E); });
}

// All experts, and those of a rank of four, which get as many rows together.
void bench_experts(Workbench& b) {
  bench_experts_of(b, b.model().num_experts / 4);
  b.release();
  bench_experts_of(b, b.model().num_experts);
}

void bench_swiglu(Workbench& b) {
  const int64_t N = b.num_tokens(), F = b.model().shared_expert_intermediate_size;
  const DType activation = b.activation();
  const Workbench::Tensors x = b.normals({N, F}, activation), up = b.normals({N, F}, activation);
  const Workbench::Tensors d_h = b.normals({N, F}, activation);
  Workbench::Tensors h = b.normals({N, F}, activation), d_a = b.normals({N, F}, activation);
  Workbench::Tensors d_b = b.normals({N, F}, activation);
  const Tensor gate = b.normal({N, 1}, wide_dtype(activation));
  Tensor d_gate = b.empty({N, 1}, activation);
  const double unit = double(h[0].bytes());
  b.measure("swiglu_forward", b.tokens_by(F), {.bytes = 3 * unit},
            [&](int turn) { swiglu_forward(b.ctx(), h[turn], x[turn], up[turn], gate); });
  b.measure("swiglu_backward", b.tokens_by(F), {.bytes = 5 * unit}, [&](int turn) {
    swiglu_backward(b.ctx(), d_a[turn], d_b[turn], d_gate, d_h[turn], x[turn], up[turn], gate);
  });
}

}  // namespace braid
