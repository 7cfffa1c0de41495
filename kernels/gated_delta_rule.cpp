#include "kernels/gated_delta_rule.h"

#include <utility>

#include "kernels/build_config.h"
#include "kernels/core/profile.h"

namespace braid {

namespace cpu {
decltype(braid::gated_delta_rule_forward) gated_delta_rule_forward;
decltype(braid::gated_delta_rule_backward) gated_delta_rule_backward;
decltype(braid::gated_delta_rule_recurrent_forward) gated_delta_rule_recurrent_forward;
decltype(braid::gated_delta_rule_recurrent_backward) gated_delta_rule_recurrent_backward;
}  // namespace cpu
namespace cuda {
void gated_delta_rule_forward(Context& ctx, Tensor o, const DeltaRuleInputs& in, const Segments& segments);
decltype(braid::gated_delta_rule_backward) gated_delta_rule_backward;
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

void check_states(const DeltaRuleStates& states, const DeltaRuleInputs& in, const Segments& segments) {
  const Shape shape = {segments.num_rows, in.v.dim(1), in.q.dim(2), in.v.dim(2)};
  for (const auto& [name, state] : {std::pair("states.initial", states.initial), {"states.final", states.final}}) {
    if (!state.defined()) continue;
    check_shapes({{name, state, shape}});
    check_dtype(wide_dtype(in.q.dtype()), {{name, state}});
  }
}

void check_backward(const DeltaRuleInputs& d_in, const Tensor& d_o, const DeltaRuleInputs& in,
                    const Segments& segments) {
  check_inputs("d_o", d_o, in, segments);
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
  check_inputs("o", o, in, segments);
  check_states(states, in, segments);
  if constexpr (kWithCuda) {
    if (ctx.on_cuda()) {
      check<EnvironmentError>(!states.initial.defined() && !states.final.defined(),
                              "gated_delta_rule_forward: states are computed with on the CPU only");
      if (in.q.dim(0) > 0) cuda::gated_delta_rule_forward(ctx, o, in, segments);
      return;
    }
  }
  if (in.q.dim(0) > 0) cpu::gated_delta_rule_forward(ctx, o, in, segments, states);
}

void gated_delta_rule_backward(Context& ctx, DeltaRuleInputs d_in, const Tensor& d_o, const DeltaRuleInputs& in,
                               const Segments& segments) {
  const OperatorScope scope(ctx, "gated_delta_rule_backward");
  check_backward(d_in, d_o, in, segments);
  if (in.q.dim(0) == 0) return;
  if constexpr (kWithCuda) {
    if (ctx.on_cuda()) return cuda::gated_delta_rule_backward(ctx, d_in, d_o, in, segments);
  }
  cpu::gated_delta_rule_backward(ctx, d_in, d_o, in, segments);
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
