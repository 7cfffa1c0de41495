#include "kernels/gdn_inputs.h"

#include "kernels/build_config.h"
#include "kernels/core/profile.h"
#include "kernels/on_device.h"

namespace braid {

namespace cpu {
decltype(braid::gdn_inputs_forward) gdn_inputs_forward;
decltype(braid::gdn_inputs_backward) gdn_inputs_backward;
}  // namespace cpu
namespace cuda {
decltype(braid::gdn_inputs_forward) gdn_inputs_forward;
decltype(braid::gdn_inputs_backward) gdn_inputs_backward;
decltype(braid::gdn_inputs_implementation) gdn_inputs_implementation;
}  // namespace cuda

namespace {

void check_all(const GdnInputs& out, const GdnProjections& x, const GdnInputWeights& weights, const Segments& segments,
               const GdnDims& d) {
  const int64_t N = x.qkvz.dim(0);
  check_shapes({{"qkvz", x.qkvz, {N, d.qkvz_columns()}},
                {"ba", x.ba, {N, d.ba_columns()}},
                {"conv", weights.conv, {d.conv_channels(), 1, d.conv_kernel}},
                {"a_log", weights.a_log, {d.value_heads}},
                {"dt_bias", weights.dt_bias, {d.value_heads}},
                {"q", out.rule.q, {N, d.key_heads, d.key_dim}},
                {"k", out.rule.k, {N, d.key_heads, d.key_dim}},
                {"v", out.rule.v, {N, d.value_heads, d.value_dim}},
                {"beta", out.rule.beta, {N, d.value_heads}},
                {"log_decay", out.rule.log_decay, {N, d.value_heads}},
                {"q_rstd", out.q_rstd, {N, d.key_heads}},
                {"k_rstd", out.k_rstd, {N, d.key_heads}}});
  const DType activation = x.qkvz.dtype();
  check_dtype(activation, {{"q", out.rule.q}, {"k", out.rule.k}, {"v", out.rule.v}});
  check_dtype(wide_dtype(activation), {{"ba", x.ba},
                                       {"conv", weights.conv},
                                       {"a_log", weights.a_log},
                                       {"dt_bias", weights.dt_bias},
                                       {"beta", out.rule.beta},
                                       {"log_decay", out.rule.log_decay},
                                       {"q_rstd", out.q_rstd},
                                       {"k_rstd", out.k_rstd}});
  check<ShapeError>(segments.num_tokens() == N, "qkvz: expected ", segments.num_tokens(), " tokens, got ", N);
}

// d_halo too, under its name.
void check_halo(const char* name, const Tensor& halo, const GdnProjections& x, const Segments& segments,
                const GdnDims& dims) {
  if (!halo.defined()) return;
  check_shapes({{name, halo, {segments.num_rows, dims.conv_kernel - 1, dims.qkvz_columns()}}});
  check_dtype(x.qkvz.dtype(), {{name, halo}});
}
void check_halo_is_there(const Tensor& halo, const Segments& segments) {
  for (int64_t row = 0; row < segments.num_rows; ++row)
    check<ShapeError>(halo.defined() || segments.before(row) == 0, "halo: row ", row, " goes on from ",
                      segments.before(row), " tokens before it, of which there is none");
}

}  // namespace

void gdn_inputs_forward(Context& ctx, GdnInputs out, const GdnProjections& x, const GdnInputWeights& weights,
                        const Segments& segments, const GdnDims& dims, const Tensor& halo) {
  const OperatorScope scope(ctx, "gdn_inputs_forward");
  check_all(out, x, weights, segments, dims);
  check_halo("halo", halo, x, segments, dims);
  check_halo_is_there(halo, segments);
  if (x.qkvz.dim(0) == 0) return;
  on_device<cpu::gdn_inputs_forward, cuda::gdn_inputs_forward>(ctx, out, x, weights, segments, dims, halo);
}

void gdn_inputs_backward(Context& ctx, GdnProjections d_x, GdnInputWeights d_weights, const DeltaRuleInputs& d_out,
                         const GdnInputs& out, const GdnProjections& x, const GdnInputWeights& weights,
                         const Segments& segments, const GdnDims& dims, const GdnHalo& halo) {
  const OperatorScope scope(ctx, "gdn_inputs_backward");
  check_all(out, x, weights, segments, dims);
  check_shapes({{"d_qkvz", d_x.qkvz, x.qkvz.shape()},
                {"d_ba", d_x.ba, x.ba.shape()},
                {"d_conv", d_weights.conv, weights.conv.shape()},
                {"d_a_log", d_weights.a_log, weights.a_log.shape()},
                {"d_dt_bias", d_weights.dt_bias, weights.dt_bias.shape()},
                {"d_q", d_out.q, out.rule.q.shape()},
                {"d_k", d_out.k, out.rule.k.shape()},
                {"d_v", d_out.v, out.rule.v.shape()},
                {"d_beta", d_out.beta, out.rule.beta.shape()},
                {"d_log_decay", d_out.log_decay, out.rule.log_decay.shape()}});
  const DType activation = x.qkvz.dtype();
  check_dtype(activation,
              {{"d_qkvz", d_x.qkvz}, {"d_ba", d_x.ba}, {"d_q", d_out.q}, {"d_k", d_out.k}, {"d_v", d_out.v}});
  check_dtype(wide_dtype(activation), {{"d_conv", d_weights.conv},
                                       {"d_a_log", d_weights.a_log},
                                       {"d_dt_bias", d_weights.dt_bias},
                                       {"d_beta", d_out.beta},
                                       {"d_log_decay", d_out.log_decay}});
  check_halo("halo", halo.rows, x, segments, dims);
  check_halo("d_halo", halo.d_rows, x, segments, dims);
  check_halo_is_there(halo.rows, segments);
  if (x.qkvz.dim(0) == 0) return;
  on_device<cpu::gdn_inputs_backward, cuda::gdn_inputs_backward>(ctx, d_x, d_weights, d_out, out, x, weights, segments,
                                                                 dims, halo);
}

Implementation gdn_inputs_implementation(Context& ctx, DType activation, const GdnDims& dims) {
  if constexpr (kWithCuda) {
    if (ctx.on_cuda()) return cuda::gdn_inputs_implementation(ctx, activation, dims);
  }
  return {"CPU", ""};
}

}  // namespace braid
