#include <cmath>

#include "kernels/gated_delta_rule.h"
#include "kernels/gdn_inputs.h"
#include "trainer/bench/workbench.h"

namespace braid {
namespace {

// Bytes of what the delta rule reads, per kind of tensor.
struct RuleBytes {
  double keys;    // q or k
  double values;  // v or o
  double gates;   // beta or log_decay
};

RuleBytes rule_bytes(const Workbench& b) {
  const GdnDims d = b.model().gdn();
  const auto N = double(b.num_tokens());
  return {b.activation_bytes() * N * double(d.key_heads * d.key_dim),
          b.activation_bytes() * N * double(d.value_heads * d.value_dim), 4 * N * double(d.value_heads)};
}

struct RuleTensors {
  explicit RuleTensors(Workbench& b) : RuleTensors(b, b.model().gdn(), b.num_tokens(), wide_dtype(b.activation())) {}
  DeltaRuleInputs operator[](int turn) const { return {q[turn], k[turn], v[turn], beta[turn], log_decay[turn]}; }
  Workbench::Tensors q, k, v, beta, log_decay;

 private:
  // Keys and queries of length 1; decay as that of a trained model's slower heads.
  RuleTensors(Workbench& b, const GdnDims& d, int64_t N, DType wide)
      : q(b.normals({N, d.key_heads, d.key_dim}, b.activation(), 1 / std::sqrt(double(d.key_dim)))),
        k(b.normals({N, d.key_heads, d.key_dim}, b.activation(), 1 / std::sqrt(double(d.key_dim)))),
        v(b.normals({N, d.value_heads, d.value_dim}, b.activation())),
        beta(b.uniforms({N, d.value_heads}, wide, 0, 1)),
        log_decay(b.uniforms({N, d.value_heads}, wide, -0.1, 0)) {}
};

DeltaRuleInputs empty_rule(Workbench& b) {
  const GdnDims d = b.model().gdn();
  const int64_t N = b.num_tokens();
  const DType activation = b.activation(), wide = wide_dtype(activation);
  return {b.empty({N, d.key_heads, d.key_dim}, activation), b.empty({N, d.key_heads, d.key_dim}, activation),
          b.empty({N, d.value_heads, d.value_dim}, activation), b.empty({N, d.value_heads}, wide),
          b.empty({N, d.value_heads}, wide)};
}

void bench_rule(Workbench& b, const std::string& shape, const Segments& documents) {
  const GdnDims d = b.model().gdn();
  const Segments segments = b.uploaded(documents);
  const RuleTensors in(b);
  const Workbench::Tensors d_o = b.normals({b.num_tokens(), d.value_heads, d.value_dim}, b.activation());
  Tensor o = b.empty({b.num_tokens(), d.value_heads, d.value_dim}, b.activation());
  const DeltaRuleInputs d_in = empty_rule(b);
  // Products of (64, Dk) by (Dk, Dv) and of (64, 64) by (64, Dv) that the chunked form has, forward, and backward with
  // what it recomputes.
  const double width = 2.0 * double(b.num_tokens() * d.value_heads * d.value_dim);
  const double state = width * double(d.key_dim), square = width * double(kDeltaRuleChunk);
  const RuleBytes bytes = rule_bytes(b);
  b.measure("gated_delta_rule_forward", shape,
            {.bytes = 2 * bytes.keys + 2 * bytes.values + 2 * bytes.gates, .flop = 3 * state + 4 * square},
            [&](int turn) { gated_delta_rule_forward(b.ctx(), o, in[turn], segments); });
  b.measure("gated_delta_rule_backward", shape,
            {.bytes = 4 * bytes.keys + 3 * bytes.values + 4 * bytes.gates, .flop = 8 * state + 11 * square},
            [&](int turn) { gated_delta_rule_backward(b.ctx(), d_in, d_o[turn], in[turn], segments); });
}

}  // namespace

void bench_gdn_inputs(Workbench& b) {
  const GdnDims d = b.model().gdn();
  const int64_t N = b.num_tokens();
  const DType activation = b.activation(), wide = wide_dtype(activation);
  const Segments segments = b.uploaded(b.whole_rows());
  const Workbench::Tensors qkvz = b.normals({N, d.qkvz_columns()}, activation);
  const Workbench::Tensors ba = b.normals({N, d.ba_columns()}, wide);
  const Shape taps = {d.conv_channels(), 1, d.conv_kernel};
  const GdnInputWeights weights = {b.normal(taps, wide, 0.5), b.normal({d.value_heads}, wide),
                                   b.normal({d.value_heads}, wide)};
  const GdnInputWeights d_weights = {b.zeros(taps, wide), b.zeros({d.value_heads}, wide),
                                     b.zeros({d.value_heads}, wide)};
  const GdnInputs out = {empty_rule(b), b.empty({N, d.key_heads}, wide), b.empty({N, d.key_heads}, wide)};
  const RuleTensors d_out(b);
  const GdnProjections d_x = {b.empty({N, d.qkvz_columns()}, activation), b.empty({N, d.ba_columns()}, activation)};
  // `out` is read by backward, also where forward was not chosen.
  gdn_inputs_forward(b.ctx(), out, {qkvz[0], ba[0]}, weights, segments, d);
  const RuleBytes bytes = rule_bytes(b);
  const double channels = 2 * bytes.keys + bytes.values;
  b.measure("gdn_inputs_forward", b.whole_rows_name(), {.bytes = 2 * channels + 4 * bytes.gates}, [&](int turn) {
    gdn_inputs_forward(b.ctx(), out, {qkvz[turn], ba[turn]}, weights, segments, d);
  });
  b.measure("gdn_inputs_backward", b.whole_rows_name(), {.bytes = 3 * channels + 7 * bytes.gates}, [&](int turn) {
    gdn_inputs_backward(b.ctx(), d_x, d_weights, d_out[turn], out, {qkvz[turn], ba[turn]}, weights, segments, d);
  });
}

void bench_gated_delta_rule(Workbench& b) {
  const int64_t N = b.num_tokens(), T = b.row_tokens();
  const std::string rows = b.whole_rows_name();
  bench_rule(b, rows, b.whole_rows());
  if (T < N) bench_rule(b, concat("1 x ", N), Segments::whole_rows(1, N));
  bench_rule(b, rows + ", packed", Workbench::mixed_documents(N / T, T));
  for (int64_t tokens : {int64_t{64}, int64_t{16}})
    bench_rule(b, concat("1 x ", N, ", documents of ", tokens), Workbench::equal_documents(N / tokens, tokens));
}

}  // namespace braid
