#include "kernels/gated_delta_rule.h"

#include <algorithm>
#include <array>
#include <utility>

#include "kernels/build_config.h"
#include "kernels/core/profile.h"
#include "kernels/on_device.h"

namespace braid {

namespace cpu {
decltype(braid::gated_delta_rule_forward) gated_delta_rule_forward;
decltype(braid::gated_delta_rule_backward) gated_delta_rule_backward;
decltype(braid::gated_delta_rule_transition) gated_delta_rule_transition;
decltype(braid::carry_states) carry_states;
decltype(braid::gated_delta_rule_recurrent_forward) gated_delta_rule_recurrent_forward;
decltype(braid::gated_delta_rule_recurrent_backward) gated_delta_rule_recurrent_backward;
}  // namespace cpu
namespace cuda {
decltype(braid::gated_delta_rule_forward) gated_delta_rule_forward;
decltype(braid::gated_delta_rule_backward) gated_delta_rule_backward;
decltype(braid::gated_delta_rule_transition) gated_delta_rule_transition;
decltype(braid::carry_states) carry_states;
decltype(braid::gated_delta_rule_implementation) gated_delta_rule_implementation;
}  // namespace cuda

namespace {

// `o` is the output, or in backward its gradient.
void check_inputs(const char* o_name, const Tensor& o, const DeltaRuleInputs& in, const Segments& segments) {
  const int64_t N = in.q.dim(0), Hk = in.q.dim(1), Dk = in.q.dim(2), Hv = in.v.dim(1), Dv = in.v.dim(2);
  check_shapes({{"q", in.q, {N, Hk, Dk}},
                {"k", in.k, {N, Hk, Dk}},
                {"v", in.v, {N, Hv, Dv}},
                {"beta", in.beta, {N, Hv}},
                {"log_decay", in.log_decay, {N, Hv}},
                {o_name, o, {N, Hv, Dv}}});
  check_dtype(in.q.dtype(), {{"k", in.k}, {"v", in.v}, {o_name, o}});
  check_dtype(wide_dtype(in.q.dtype()), {{"beta", in.beta}, {"log_decay", in.log_decay}});
  check<ShapeError>(Hk > 0 && Hv % Hk == 0, "v: expected a multiple of ", Hk, " heads, got ", Hv);
  check<ShapeError>(segments.num_tokens() == N, "q: expected ", segments.num_tokens(), " tokens, got ", N);
}

void check_states(std::initializer_list<std::pair<const char*, Tensor>> states, const DeltaRuleInputs& in,
                  const Segments& segments) {
  const Shape shape = {segments.num_rows, in.v.dim(1), in.q.dim(2), in.v.dim(2)};
  for (const auto& [name, state] : states) {
    if (!state.defined()) continue;
    check_shapes({{name, state, shape}});
    check_dtype(wide_dtype(in.q.dtype()), {{name, state}});
  }
}

void check_backward(const DeltaRuleInputs& d_in, const Tensor& d_o, const DeltaRuleInputs& in,
                    const Segments& segments) {
  check_inputs("d_o", d_o, in, segments);
  if (!d_in.q.defined()) return;
  check_shapes({{"d_q", d_in.q, in.q.shape()},
                {"d_k", d_in.k, in.k.shape()},
                {"d_v", d_in.v, in.v.shape()},
                {"d_beta", d_in.beta, in.beta.shape()},
                {"d_log_decay", d_in.log_decay, in.log_decay.shape()}});
  check_dtype(in.q.dtype(), {{"d_q", d_in.q}, {"d_k", d_in.k}, {"d_v", d_in.v}});
  check_dtype(wide_dtype(in.q.dtype()), {{"d_beta", d_in.beta}, {"d_log_decay", d_in.log_decay}});
}

}  // namespace

void gated_delta_rule_forward(Context& ctx, Tensor o, const DeltaRuleInputs& in, const Segments& segments,
                              DeltaRuleStates states) {
  const OperatorScope scope(ctx, "gated_delta_rule_forward");
  check_inputs("o", o.defined() ? o : in.v, in, segments);
  check_states({{"states.initial", states.initial}, {"states.final", states.final}}, in, segments);
  check<ShapeError>(o.defined() || states.final.defined(), "o: neither it nor the final states are asked for");
  if (in.q.dim(0) == 0) return;
  on_device<cpu::gated_delta_rule_forward, cuda::gated_delta_rule_forward>(ctx, o, in, segments, states);
}

void gated_delta_rule_backward(Context& ctx, DeltaRuleInputs d_in, const Tensor& d_o, const DeltaRuleInputs& in,
                               const Segments& segments, DeltaRuleStateGradients states) {
  const OperatorScope scope(ctx, "gated_delta_rule_backward");
  check_backward(d_in, d_o, in, segments);
  check_states(
      {{"states.initial", states.initial}, {"states.d_initial", states.d_initial}, {"states.d_final", states.d_final}},
      in, segments);
  check<ShapeError>(d_in.q.defined() || states.d_initial.defined(),
                    "d_q: neither the gradients nor those of the initial states are asked for");
  if (in.q.dim(0) == 0) return;
  on_device<cpu::gated_delta_rule_backward, cuda::gated_delta_rule_backward>(ctx, d_in, d_o, in, segments, states);
}

void gated_delta_rule_transition(Context& ctx, Tensor transition, const DeltaRuleInputs& in, const Segments& segments) {
  const OperatorScope scope(ctx, "gated_delta_rule_transition");
  const int64_t Hv = in.v.dim(1), Dk = in.q.dim(2);
  check_inputs("v", in.v, in, segments);
  check_shapes({{"transition", transition, {segments.num_rows, Hv, Dk, Dk}}});
  check_dtype(wide_dtype(in.q.dtype()), {{"transition", transition}});
  if (in.q.dim(0) == 0) return;
  on_device<cpu::gated_delta_rule_transition, cuda::gated_delta_rule_transition>(ctx, transition, in, segments);
}

void carry_states(Context& ctx, Tensor states, const Tensor& transitions, const Tensor& contributions,
                  const std::vector<std::vector<int64_t>>& ways, StateDirection direction) {
  const OperatorScope scope(ctx, "carry_states");
  const int64_t L = transitions.dim(0), B = std::ssize(ways), Hv = states.dim(1), Dk = states.dim(2),
                Dv = states.dim(3);
  check_shapes({{"states", states, {B, Hv, Dk, Dv}},
                {"transitions", transitions, {L, Hv, Dk, Dk}},
                {"contributions", contributions, {L, Hv, Dk, Dv}}});
  check_dtype(states.dtype(), {{"transitions", transitions}, {"contributions", contributions}});
  for (const auto& way : ways)
    for (int64_t part : way) check<ShapeError>(0 <= part && part < L, "ways: ", part, " is none of ", L);
  on_device<cpu::carry_states, cuda::carry_states>(ctx, states, transitions, contributions, ways, direction);
}

void gated_delta_rule_recurrent_forward(Context& ctx, Tensor o, const DeltaRuleInputs& in, const Segments& segments) {
  const OperatorScope scope(ctx, "gated_delta_rule_recurrent_forward");
  check_inputs("o", o, in, segments);
  if (in.q.dim(0) == 0) return;
  cpu::gated_delta_rule_recurrent_forward(ctx, o, in, segments);
}

void gated_delta_rule_recurrent_backward(Context& ctx, DeltaRuleInputs d_in, const Tensor& d_o,
                                         const DeltaRuleInputs& in, const Segments& segments) {
  const OperatorScope scope(ctx, "gated_delta_rule_recurrent_backward");
  check_backward(d_in, d_o, in, segments);
  if (in.q.dim(0) == 0) return;
  cpu::gated_delta_rule_recurrent_backward(ctx, d_in, d_o, in, segments);
}

Implementation gated_delta_rule_implementation(Context& ctx, const DeltaRuleInputs& in) {
  if constexpr (kWithCuda) {
    if (ctx.on_cuda()) return cuda::gated_delta_rule_implementation(ctx, in);
  }
  return {"CPU", ""};
}

}  // namespace braid
