#include "kernels/attention_inputs.h"

#include <iterator>

#include "kernels/build_config.h"
#include "kernels/core/profile.h"
#include "kernels/on_device.h"

namespace braid {

namespace cpu {
decltype(braid::attention_inputs_forward) attention_inputs_forward;
decltype(braid::attention_inputs_backward) attention_inputs_backward;
}  // namespace cpu
namespace cuda {
decltype(braid::attention_inputs_forward) attention_inputs_forward;
decltype(braid::attention_inputs_backward) attention_inputs_backward;
decltype(braid::attention_inputs_implementation) attention_inputs_implementation;
}  // namespace cuda

namespace {

void check_inputs(const AttentionInputs& out, const AttentionProjections& x, const AttentionInputWeights& weights,
                  const Segments& segments, const AttentionDims& dims) {
  const int64_t N = segments.num_tokens(), Hq = dims.query_heads, Hkv = dims.kv_heads, Dh = dims.head_dim;
  check_shapes({{"x.q_gate", x.q_gate, {N, Hq, dims.query_parts(), Dh}},
                {"x.k", x.k, {N, Hkv, Dh}},
                {"weights.q_norm", weights.q_norm, {Dh}},
                {"weights.k_norm", weights.k_norm, {Dh}},
                {"q", out.q, {N, Hq, Dh}},
                {"k", out.k, {N, Hkv, Dh}},
                {"q_rstd", out.q_rstd, {N, Hq}},
                {"k_rstd", out.k_rstd, {N, Hkv}}});
  check_dtype(x.q_gate.dtype(), {{"x.k", x.k}, {"q", out.q}, {"k", out.k}});
  check_dtype(wide_dtype(x.q_gate.dtype()), {{"weights.q_norm", weights.q_norm},
                                             {"weights.k_norm", weights.k_norm},
                                             {"q_rstd", out.q_rstd},
                                             {"k_rstd", out.k_rstd}});
  check<ShapeError>(dims.rotary_dim >= 0 && dims.rotary_dim % 2 == 0 && dims.rotary_dim <= Dh,
                    "rotary_dim: expected an even number up to ", Dh, ", got ", dims.rotary_dim);
}

}  // namespace

void attention_inputs_forward(Context& ctx, AttentionInputs out, const AttentionProjections& x,
                              const AttentionInputWeights& weights, const Segments& segments,
                              const AttentionDims& dims) {
  const OperatorScope scope(ctx, "attention_inputs_forward");
  check_inputs(out, x, weights, segments, dims);
  if (segments.num_tokens() == 0) return;
  on_device<cpu::attention_inputs_forward, cuda::attention_inputs_forward>(ctx, out, x, weights, segments, dims);
}

void attention_inputs_backward(Context& ctx, AttentionProjections d_x, AttentionInputWeights d_weights,
                               const Tensor& d_q, const Tensor& d_k, const AttentionInputs& out,
                               const AttentionProjections& x, const AttentionInputWeights& weights,
                               const Segments& segments, const AttentionDims& dims) {
  const OperatorScope scope(ctx, "attention_inputs_backward");
  check_inputs(out, x, weights, segments, dims);
  check_shapes({{"d_x.q_gate", d_x.q_gate, x.q_gate.shape()},
                {"d_x.k", d_x.k, x.k.shape()},
                {"d_weights.q_norm", d_weights.q_norm, weights.q_norm.shape()},
                {"d_weights.k_norm", d_weights.k_norm, weights.k_norm.shape()},
                {"d_q", d_q, out.q.shape()},
                {"d_k", d_k, out.k.shape()}});
  check_dtype(x.q_gate.dtype(), {{"d_x.q_gate", d_x.q_gate}, {"d_x.k", d_x.k}, {"d_q", d_q}, {"d_k", d_k}});
  check_dtype(wide_dtype(x.q_gate.dtype()),
              {{"d_weights.q_norm", d_weights.q_norm}, {"d_weights.k_norm", d_weights.k_norm}});
  if (segments.num_tokens() == 0) return;
  on_device<cpu::attention_inputs_backward, cuda::attention_inputs_backward>(ctx, d_x, d_weights, d_q, d_k, out, x,
                                                                             weights, segments, dims);
}

Implementation attention_inputs_implementation(Context& ctx, DType activation, const AttentionDims& dims) {
  if constexpr (kWithCuda) {
    if (ctx.on_cuda()) return cuda::attention_inputs_implementation(ctx, activation, dims);
  }
  return {"CPU", ""};
}

}  // namespace braid
