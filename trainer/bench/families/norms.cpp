#include "kernels/gated_rms_norm.h"
#include "kernels/mtp_inputs.h"
#include "kernels/rms_norm.h"
#include "trainer/bench/workbench.h"

// Bytes count activations; weights, their gradients and rstd are a thousandth of them.
namespace braid {

void bench_rms_norm(Workbench& b) {
  const int64_t N = b.num_tokens(), C = b.model().hidden_size;
  const DType activation = b.activation(), wide = wide_dtype(activation);
  const double eps = b.model().rms_norm_eps, unit = b.activation_bytes() * double(N * C);
  const Workbench::Tensors x = b.normals({N, C}, activation), d_y = b.normals({N, C}, activation);
  Workbench::Tensors delta = b.normals({N, C}, activation);
  const Tensor weight = b.normal({C}, wide, 0.1);
  Tensor rstd = b.uniform({N}, wide, 0.5, 2), d_weight = b.zeros({C}, wide);
  Tensor y = b.empty({N, C}, activation), sum = b.empty({N, C}, activation);
  const std::string shape = b.tokens_by(C);
  b.measure("rms_norm_forward", shape, {.bytes = 2 * unit},
            [&](int turn) { rms_norm_forward(b.ctx(), y, rstd, x[turn], weight, eps); });
  b.measure("rms_norm_backward", shape, {.bytes = 3 * unit},
            [&](int turn) { rms_norm_backward(b.ctx(), sum, d_weight, d_y[turn], x[turn], weight, rstd); });
  b.measure("add_rms_norm_forward", shape, {.bytes = 4 * unit},
            [&](int turn) { add_rms_norm_forward(b.ctx(), y, sum, rstd, x[turn], delta[turn], weight, eps); });
  b.measure("add_rms_norm_backward", shape, {.bytes = 4 * unit},
            [&](int turn) { add_rms_norm_backward(b.ctx(), delta[turn], d_weight, d_y[turn], x[turn], weight, rstd); });
}

void bench_mtp_inputs(Workbench& b) {
  const int64_t N = b.num_tokens(), C = b.model().hidden_size;
  const DType activation = b.activation(), wide = wide_dtype(activation);
  const double unit = b.activation_bytes() * double(N * C);
  const Workbench::Tensors embedding = b.normals({N, C}, activation), hidden = b.normals({N, C}, activation);
  const Workbench::Tensors d_joined = b.normals({N, 2 * C}, activation);
  Workbench::Tensors d_hidden = b.normals({N, C}, activation);
  const MtpInputWeights weights = {b.normal({C}, wide, 0.1), b.normal({C}, wide, 0.1)};
  const MtpInputWeights d_weights = {b.zeros({C}, wide), b.zeros({C}, wide)};
  const MtpInputs out = {b.empty({N, 2 * C}, activation), b.uniform({N}, wide, 0.5, 2), b.uniform({N}, wide, 0.5, 2)};
  Tensor d_embedding = b.empty({N, C}, activation);
  const std::string shape = b.tokens_by(C);
  b.measure("mtp_inputs_forward", shape, {.bytes = 4 * unit}, [&](int turn) {
    mtp_inputs_forward(b.ctx(), out, embedding[turn], hidden[turn], weights, b.model().rms_norm_eps);
  });
  b.measure("mtp_inputs_backward", shape, {.bytes = 7 * unit}, [&](int turn) {
    mtp_inputs_backward(b.ctx(), d_embedding, d_hidden[turn], d_weights, d_joined[turn], embedding[turn], hidden[turn],
                        out, weights);
  });
}

void bench_gated_rms_norm(Workbench& b) {
  const GdnDims dims = b.model().gdn();
  const int64_t N = b.num_tokens();
  const DType activation = b.activation(), wide = wide_dtype(activation);
  const Shape heads = {N, dims.value_heads, dims.value_dim};
  const Workbench::Tensors o = b.normals(heads, activation), d_y = b.normals(heads, activation);
  const Workbench::Tensors qkvz = b.normals({N, dims.qkvz_columns()}, activation);
  const Tensor weight = b.normal({dims.value_dim}, wide, 0.1, 1);
  Tensor y = b.empty(heads, activation), d_o = b.empty(heads, activation);
  Tensor rstd = b.uniform({N, dims.value_heads}, wide, 0.5, 2), d_weight = b.zeros({dims.value_dim}, wide);
  Tensor d_qkvz = b.empty({N, dims.qkvz_columns()}, activation);
  const double unit = b.activation_bytes() * double(heads.numel());
  const std::string shape = concat(N, " x ", dims.value_heads, " x ", dims.value_dim);
  b.measure("gated_rms_norm_forward", shape, {.bytes = 3 * unit}, [&](int turn) {
    gated_rms_norm_forward(b.ctx(), y, rstd, o[turn], qkvz[turn], weight, b.model().rms_norm_eps, dims);
  });
  b.measure("gated_rms_norm_backward", shape, {.bytes = 5 * unit}, [&](int turn) {
    gated_rms_norm_backward(b.ctx(), d_o, d_qkvz, d_weight, d_y[turn], o[turn], rstd, qkvz[turn], weight, dims);
  });
}

}  // namespace braid
