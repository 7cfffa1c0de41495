#include "kernels/router.h"

#include "kernels/build_config.h"
#include "kernels/core/profile.h"
#include "kernels/on_device.h"

namespace braid {

namespace cpu {
decltype(braid::router_forward) router_forward;
decltype(braid::router_backward) router_backward;
decltype(braid::router_entropy) router_entropy;
}  // namespace cpu
namespace cuda {
decltype(braid::router_forward) router_forward;
decltype(braid::router_backward) router_backward;
decltype(braid::router_entropy) router_entropy;
}  // namespace cuda

namespace {

void check_outputs(const RouterOutputs& out, DType wide, const Segments& segments) {
  const int64_t N = segments.num_tokens(), B = segments.num_rows, K = out.expert_id.dim(1), E = out.prob.dim(1);
  check_shapes({{"expert_id", out.expert_id, {N, K}},
                {"gate", out.gate, {N, K}},
                {"prob", out.prob, {N, E}},
                {"lse", out.lse, {N}},
                {"counts", out.counts, {B, E}},
                {"prob_sum", out.prob_sum, {B, E}},
                {"z_sum", out.z_sum, {B}}});
  check_dtype(DType::kI32, {{"expert_id", out.expert_id}});
  check_dtype(wide, {{"gate", out.gate}, {"prob", out.prob}, {"lse", out.lse}});
  check_dtype(DType::kI64, {{"counts", out.counts}});
  check_dtype(DType::kF64, {{"prob_sum", out.prob_sum}, {"z_sum", out.z_sum}});
  check<ShapeError>(1 <= K && K <= E, "expert_id: ", K, " experts per token, but prob has ", E, " experts");
}

}  // namespace

void router_forward(Context& ctx, RouterOutputs out, const Tensor& logits, const Segments& segments, GateNorm norm) {
  const OperatorScope scope(ctx, "router_forward");
  check_shapes({{"logits", logits, {segments.num_tokens(), out.prob.dim(1)}}});
  check_outputs(out, logits.dtype(), segments);
  // Also for N = 0: the sums are then all zero.
  if constexpr (kWithCuda) {
    if (ctx.on_cuda()) return cuda::router_forward(ctx, out, logits, segments, norm);
  }
  if (!ctx.counts_only()) cpu::router_forward(ctx, out, logits, segments, norm);
}

void router_entropy(Context& ctx, Tensor out, const Tensor& logits, const RouterOutputs& router,
                    const Segments& segments) {
  const OperatorScope scope(ctx, "router_entropy");
  check_outputs(router, logits.dtype(), segments);
  check_shapes({{"out", out, {1}}, {"logits", logits, router.prob.shape()}});
  check_dtype(DType::kF64, {{"out", out}});
  // Also for N = 0: the sum is then 0.
  on_device<cpu::router_entropy, cuda::router_entropy>(ctx, out, logits, router, segments);
}

void router_backward(Context& ctx, Tensor d_logits, const Tensor& d_gate, const Tensor& d_prob, double z_weight,
                     const RouterOutputs& out, const Segments& segments, GateNorm norm) {
  const OperatorScope scope(ctx, "router_backward");
  const int64_t N = segments.num_tokens(), B = segments.num_rows, K = out.expert_id.dim(1), E = out.prob.dim(1);
  const DType wide = wide_dtype(d_logits.dtype());
  check_outputs(out, wide, segments);
  check_shapes({{"d_logits", d_logits, {N, E}}, {"d_gate", d_gate, {N, K}}, {"d_prob", d_prob, {B, E}}});
  check_dtype(wide, {{"d_gate", d_gate}});
  check_dtype(DType::kF64, {{"d_prob", d_prob}});
  if (N == 0 || ctx.counts_only()) return;
  on_device<cpu::router_backward, cuda::router_backward>(ctx, d_logits, d_gate, d_prob, z_weight, out, segments, norm);
}

}  // namespace braid
