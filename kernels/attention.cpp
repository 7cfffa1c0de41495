#include "kernels/attention.h"

#include <iterator>
#include <numeric>

#include "kernels/build_config.h"
#include "kernels/core/profile.h"
#include "kernels/on_device.h"

namespace braid {

namespace cpu {
decltype(braid::attention_forward) attention_forward;
decltype(braid::attention_backward) attention_backward;
}  // namespace cpu
namespace cuda {
decltype(braid::attention_forward) attention_forward;
decltype(braid::attention_backward) attention_backward;
decltype(braid::attention_implementation) attention_implementation;
}  // namespace cuda

namespace {

void check_inputs(const AttentionTensors& in, const AttentionOutputs& out, const Segments& segments) {
  const int64_t N = segments.num_tokens(), Hq = in.q.dim(1), Hkv = in.k.dim(1), Dh = in.q.dim(2);
  const std::vector<int64_t>& before = segments.tokens_before;
  const int64_t num_keys = std::accumulate(before.begin(), before.end(), N);
  check_shapes({{"q", in.q, {N, Hq, Dh}},
                {"k", in.k, {num_keys, Hkv, Dh}},
                {"v", in.v, {num_keys, Hkv, Dh}},
                {"y", out.y, {N, Hq, Dh}},
                {"o", out.o, {N, Hq, Dh}},
                {"lse", out.lse, {N, Hq}}});
  check_dtype(in.q.dtype(), {{"k", in.k}, {"v", in.v}, {"y", out.y}, {"o", out.o}});
  if (in.q_gate.defined()) {
    check_shapes({{"q_gate", in.q_gate, {N, Hq, 2, Dh}}});
    check_dtype(in.q.dtype(), {{"q_gate", in.q_gate}});
  }
  check_dtype(wide_dtype(in.q.dtype()), {{"lse", out.lse}});
  check<ShapeError>(Hkv > 0 && Hq % Hkv == 0, "q: ", Hq, " heads are not a multiple of the ", Hkv, " heads of k");
}

}  // namespace

void attention_forward(Context& ctx, AttentionOutputs out, const AttentionTensors& in, const Segments& segments) {
  const OperatorScope scope(ctx, "attention_forward");
  check_inputs(in, out, segments);
  for (const auto& [name, number] :
       {std::pair{"score_max", out.score_max}, {"first_token_share", out.first_token_share}}) {
    if (!number.defined()) continue;
    check_shapes({{name, number, {1}}});
    check_dtype(DType::kF64, {{name, number}});
    check<ShapeError>(!ctx.on_cuda(), name, ": is not computed on a GPU");
  }
  if (segments.num_tokens() == 0 && !out.score_max.defined() && !out.first_token_share.defined()) return;
  on_device<cpu::attention_forward, cuda::attention_forward>(ctx, out, in, segments);
}

void attention_backward(Context& ctx, AttentionGradients d_in, const Tensor& d_y, const AttentionTensors& in,
                        const AttentionOutputs& out, const Segments& segments) {
  const OperatorScope scope(ctx, "attention_backward");
  check_inputs(in, out, segments);
  check_shapes({{"d_q", d_in.q, in.q.shape()},
                {"d_k", d_in.k, in.k.shape()},
                {"d_v", d_in.v, in.v.shape()},
                {"d_y", d_y, in.q.shape()}});
  check_dtype(in.q.dtype(), {{"d_q", d_in.q}, {"d_k", d_in.k}, {"d_v", d_in.v}, {"d_y", d_y}});
  if (in.q_gate.defined()) {
    check_shapes({{"d_q_gate", d_in.q_gate, in.q_gate.shape()}});
    check_dtype(in.q.dtype(), {{"d_q_gate", d_in.q_gate}});
  }
  if (segments.num_tokens() == 0) return;
  on_device<cpu::attention_backward, cuda::attention_backward>(ctx, d_in, d_y, in, out, segments);
}

AttentionImplementation attention_implementation(Context& ctx, const AttentionTensors& in, const Segments& segments) {
  if constexpr (kWithCuda) {
    if (ctx.on_cuda()) return cuda::attention_implementation(ctx, in, segments);
  }
  return {"CPU", "CPU", ""};
}

}  // namespace braid
