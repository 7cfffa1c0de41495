#include "model/moe_layer.h"

#include <algorithm>
#include <optional>

#include "kernels/matmul.h"
#include "kernels/swiglu.h"

namespace braid {

MoeLayer::MoeLayer(const ModelConfig& c, ExpertExchange& exchange)
    : C_(c.hidden_size),
      E_(c.num_experts),
      K_(c.num_experts_per_tok),
      F_(c.moe_intermediate_size),
      Fs_(c.shared_expert_intermediate_size),
      norm_(c.norm_topk_prob ? GateNorm::kTopK : GateNorm::kNone),
      exchange_(exchange) {}

double MoeLayer::multiply_adds(const ModelConfig& c) {
  const double C = double(c.hidden_size);
  return C * double(c.num_experts) + 3 * C * double(c.num_experts_per_tok * c.moe_intermediate_size) +
         3 * C * double(c.shared_expert_intermediate_size) + C;
}

double MoeLayer::output_multiply_adds(const ModelConfig& c) {
  return double(c.hidden_size) *
         double(c.num_experts_per_tok * c.moe_intermediate_size + c.shared_expert_intermediate_size);
}

void MoeLayer::plan(SavedPlan& saved, MoeSaved& s, int64_t num_rows, int64_t N, DType dtype) const {
  const int64_t Rmax = exchange_.max_rows();
  const DType wide = wide_dtype(dtype);
  saved.keep("expert_id", s.router.expert_id, {N, K_}, DType::kI32);
  saved.keep("gate", s.router.gate, {N, K_}, wide);
  saved.by_products("prob", s.router.prob, {N, E_}, wide);
  saved.keep("lse", s.router.lse, {N}, wide);
  saved.keep("counts", s.router.counts, {num_rows, E_}, DType::kI64);
  saved.keep("prob_sum", s.router.prob_sum, {num_rows, E_}, DType::kF64);
  saved.keep("z_sum", s.router.z_sum, {num_rows}, DType::kF64);
  saved.planner().offer("moe/router_entropy", s.router_entropy, NumberKind::kTokenMean);
  exchange_.plan_memory(saved.planner(), s.route);
  if (rows_are_near()) saved.by_elements("rows", s.rows, {Rmax, C_}, dtype);
  else saved.by_products("rows", s.rows, {Rmax, C_}, dtype);
  saved.keep("row_gate", s.row_gate, {Rmax}, wide);
  saved.by_products("gate_up_out", s.gate_up_out, {Rmax, 2 * F_}, dtype);
  saved.by_products("shared_a", s.shared_a, {N, Fs_}, dtype);
  saved.by_products("shared_b", s.shared_b, {N, Fs_}, dtype);
  saved.by_products("shared_gate", s.shared_gate, {N, 1}, wide);
}

// body(route) with the route of all rows, or with that of every round.
template <class Body>
void MoeLayer::for_each_round(Context& ctx, const ExpertRoute& route, Body&& body) const {
  if (!route.in_rounds()) return body(route);
  for (const ExpertRoute::Round& round : route.rounds) {
    Scratch scratch(ctx);
    body(exchange_.round(ctx, scratch, route, round));
  }
}

void MoeLayer::forward(Context& ctx, Tensor y, const Tensor& x, const MoeParams& p, MoeSaved& s,
                       const LayerPass& pass) const {
  const int64_t N = x.dim(0);
  Scratch scratch(ctx);

  // Rows travel beside the router and the shared expert, and back beside the rest of that.
  Tensor travelling;
  if (exchange_.starts_before_plan()) travelling = exchange_.start_dispatch(ctx, scratch, x, s.route);
  Tensor logits = scratch.tensor({N, E_}, wide_dtype(x.dtype()));
  linear_forward(ctx, logits, x, p.router);
  router_forward(ctx, s.router, logits, pass.segments, norm_);
  if (s.router_entropy.defined()) router_entropy(ctx, s.router_entropy, logits, s.router, pass.segments);
  exchange_.plan(ctx, s.route, s.router.expert_id);
  if (!exchange_.starts_before_plan()) travelling = exchange_.start_dispatch(ctx, scratch, x, s.route);
  const Tensor travelling_gates = exchange_.start_dispatch_gates(ctx, scratch, s.router.gate, s.route);
  linear_forward(ctx, s.shared_a, x, p.shared.gate_proj);
  const bool in_rounds = s.route.in_rounds();
  Tensor most_out = scratch.tensor({std::min(s.route.num_rows, exchange_.max_rows()), C_}, x.dtype());
  Tensor sums, returning;
  if (in_rounds) sums = exchange_.zero_sums(ctx, scratch, C_, x.dtype(), s.route);
  for_each_round(ctx, s.route, [&](const ExpertRoute& route) {
    const int64_t R = route.num_rows;
    Tensor rows = s.rows.rows(0, R), row_gate = s.row_gate.rows(0, R), rows_out = most_out.rows(0, R);
    exchange_.finish_dispatch_gates(ctx, row_gate, travelling_gates, route);
    exchange_.finish_dispatch(ctx, rows, travelling, x, route);
    experts_forward(ctx, rows_out, s.gate_up_out.rows(0, R), rows, row_gate, route.rows_per_expert(), p.experts);
    if (in_rounds) add_rows(ctx, sums, rows_out, route.order);
    else returning = exchange_.start_combine(ctx, scratch, rows_out, route);
  });
  if (in_rounds) returning = exchange_.start_combine_sums(ctx, scratch, sums, x.dtype(), s.route);
  Tensor h = scratch.tensor({N, Fs_}, x.dtype());
  linear_forward(ctx, s.shared_b, x, p.shared.up_proj);
  linear_forward(ctx, s.shared_gate, x, p.shared.gate);
  swiglu_forward(ctx, h, s.shared_a, s.shared_b, s.shared_gate);
  linear_forward(ctx, y, h, p.shared.down_proj);
  exchange_.finish_combine(ctx, y, returning, s.route, Accumulate::kYes);
}

// What backward reads, made again from x, where tokens were routed, and what is kept.
void MoeLayer::remake(Context& ctx, Remake what, const Tensor& x, const MoeParams& p, const MoeSaved& s,
                      const LayerPass& pass) const {
  if (what == Remake::kNothing || (what == Remake::kElementwise && !rows_are_near())) return;
  const bool in_rounds = s.route.in_rounds();  // which fetch and make their rows themselves
  const int64_t R = in_rounds ? 0 : s.route.num_rows;
  const Tensor rows = s.rows.rows(0, R), row_gate = s.row_gate.rows(0, R);
  if (what == Remake::kElementwise) {
    if (!in_rounds) exchange_.dispatch(ctx, rows, x, s.route);
    return;
  }

  Scratch scratch(ctx);
  Tensor travelling;
  if (!in_rounds) travelling = exchange_.start_dispatch(ctx, scratch, x, s.route);
  Tensor logits = scratch.tensor({x.dim(0), E_}, wide_dtype(x.dtype()));
  linear_forward(ctx, logits, x, p.router);
  router_forward(ctx, s.router, logits, pass.segments, norm_);
  linear_forward(ctx, s.shared_a, x, p.shared.gate_proj);
  linear_forward(ctx, s.shared_b, x, p.shared.up_proj);
  linear_forward(ctx, s.shared_gate, x, p.shared.gate);
  if (in_rounds) return;
  exchange_.finish_dispatch(ctx, rows, travelling, x, s.route);
  experts_forward(ctx, {}, s.gate_up_out.rows(0, R), rows, row_gate, s.route.rows_per_expert(), p.experts);
}

void MoeLayer::backward(Context& ctx, Tensor d_x, MoeParams& g, const Tensor& d_y, const Tensor& x, const MoeParams& p,
                        const MoeSaved& s, const LayerPass& pass) const {
  remake(ctx, remake_of(LayerPart::kMoe, pass.recompute), x, p, s, pass);
  const int64_t N = x.dim(0), Rmax = std::min(s.route.num_rows, exchange_.max_rows());
  const DType dtype = x.dtype(), wide = wide_dtype(dtype);
  const bool in_rounds = s.route.in_rounds();
  Scratch scratch(ctx);

  Tensor most_d_out = scratch.tensor({Rmax, C_}, dtype), most_d_rows = scratch.tensor({Rmax, C_}, dtype);
  Tensor most_d_gate = scratch.tensor({Rmax}, wide), d_gate = scratch.tensor({N, K_}, wide);
  Tensor sums, gate_sums;
  if (in_rounds) {
    sums = exchange_.zero_sums(ctx, scratch, C_, dtype, s.route);
    gate_sums = exchange_.zero_gate_sums(ctx, scratch, wide, s.route);
  }
  Tensor d_logits = scratch.tensor({N, E_}, dtype);
  Tensor h = scratch.tensor({N, Fs_}, dtype), d_h = scratch.tensor({N, Fs_}, dtype);
  Tensor d_b = scratch.tensor({N, Fs_}, dtype), d_shared_gate = scratch.tensor({N, 1}, dtype);
  Tensor d_a = d_h;
  const ExpertHidden most_hidden = {scratch.tensor({Rmax, F_}, dtype), scratch.tensor({Rmax, 2 * F_}, dtype)};

  // The transpose of combine brings d_y to the experts; meanwhile the shared expert, which is first in the sum of d_x.
  // Rounds need x once more.
  {
    std::optional<Scratch> transfer(std::in_place, ctx);
    Tensor x_again, gates_again;
    if (in_rounds) {
      gates_again = exchange_.start_dispatch_gates(ctx, *transfer, s.router.gate, s.route);
      x_again = exchange_.keep(ctx, *transfer, exchange_.start_dispatch(ctx, *transfer, x, s.route));
    }
    const Tensor travelling = exchange_.start_dispatch(ctx, *transfer, d_y, s.route);
    swiglu_forward(ctx, h, s.shared_a, s.shared_b, s.shared_gate);
    linear_backward_weight(ctx, g.shared.down_proj, d_y, h);
    linear_backward_input(ctx, d_h, d_y, p.shared.down_proj);
    swiglu_backward(ctx, d_a, d_b, d_shared_gate, d_h, s.shared_a, s.shared_b, s.shared_gate);
    linear_backward_weight(ctx, g.shared.gate, d_shared_gate, x);
    linear_backward_weight(ctx, g.shared.gate_proj, d_a, x);
    linear_backward_weight(ctx, g.shared.up_proj, d_b, x);
    linear_backward_input(ctx, d_x, d_a, p.shared.gate_proj);
    linear_backward_input(ctx, d_x, d_b, p.shared.up_proj, Accumulate::kYes);
    linear_backward_input(ctx, d_x, d_shared_gate, p.shared.gate, Accumulate::kYes);
    Accumulate accumulate = pass.expert_gradients;
    for_each_round(ctx, s.route, [&](const ExpertRoute& route) {
      const int64_t R = route.num_rows;
      Tensor rows = s.rows.rows(0, R), row_gate = s.row_gate.rows(0, R), gate_up_out = s.gate_up_out.rows(0, R);
      Tensor d_out = most_d_out.rows(0, R), d_rows = most_d_rows.rows(0, R), d_row_gate = most_d_gate.rows(0, R);
      if (in_rounds) {
        exchange_.finish_dispatch_gates(ctx, row_gate, gates_again, route);
        exchange_.finish_dispatch(ctx, rows, x_again, x, route);
        experts_forward(ctx, d_rows, gate_up_out, rows, row_gate, route.rows_per_expert(), p.experts);
      }
      exchange_.finish_dispatch(ctx, d_out, travelling, d_y, route);
      if (!in_rounds) transfer.reset();
      const ExpertHidden hidden = {most_hidden.h.rows(0, R), most_hidden.d_gate_up_out.rows(0, R)};
      experts_backward_input(ctx, d_rows, d_row_gate, hidden, d_out, row_gate, gate_up_out, route.rows_per_expert(),
                             p.experts);
      if (!in_rounds) return;
      experts_backward_weight(ctx, g.experts, hidden, d_out, rows, route.rows_per_expert(), accumulate);
      accumulate = Accumulate::kYes;
      add_rows(ctx, sums, d_rows, route.order);
      exchange_.add_gates(ctx, gate_sums, d_row_gate, route);
    });
  }

  // The transpose of dispatch brings d_x back; meanwhile the gradients of the weights.
  const Tensor travelling_gates = in_rounds ? exchange_.start_return_gate_sums(ctx, scratch, gate_sums, s.route)
                                            : exchange_.start_return_gates(ctx, scratch, most_d_gate, s.route);
  const Tensor travelling = in_rounds ? exchange_.start_combine_sums(ctx, scratch, sums, dtype, s.route)
                                      : exchange_.start_combine(ctx, scratch, most_d_rows, s.route);
  if (!in_rounds)
    experts_backward_weight(ctx, g.experts, most_hidden, most_d_out, s.rows.rows(0, Rmax), s.route.rows_per_expert(),
                            pass.expert_gradients);
  exchange_.finish_return_gates(ctx, d_gate, travelling_gates, s.route);
  router_backward(ctx, d_logits, d_gate, pass.balance.d_prob, pass.balance.z_weight, s.router, pass.segments, norm_);
  linear_backward_weight(ctx, g.router, d_logits, x);
  linear_backward_input(ctx, d_x, d_logits, p.router, Accumulate::kYes);
  exchange_.finish_combine(ctx, d_x, travelling, s.route, Accumulate::kYes);
}

}  // namespace braid
