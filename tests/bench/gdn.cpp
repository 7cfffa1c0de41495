// Gated DeltaNet. items/s are tokens: they must not fall as the sequence grows.
#include <vector>

#include "kernels/gated_delta_rule.h"
#include "kernels/gated_rms_norm.h"
#include "kernels/gdn_inputs.h"
#include "kernels/matmul.h"
#include "tests/bench/bench.h"

namespace braid::bench {
namespace {

constexpr GdnDims kDims{.key_heads = 2, .value_heads = 4, .key_dim = 128, .value_dim = 128, .conv_kernel = 4};
constexpr int64_t kHidden = 512;

DeltaRuleInputs empty_like_inputs(Tensors& t, int64_t N) {
  const GdnDims& d = kDims;
  return {.q = t.empty({N, d.key_heads, d.key_dim}),
          .k = t.empty({N, d.key_heads, d.key_dim}),
          .v = t.empty({N, d.value_heads, d.value_dim}),
          .beta = t.empty({N, d.value_heads}),
          .log_decay = t.empty({N, d.value_heads})};
}

// One mixer: x -> projections -> inputs -> delta rule -> gated norm -> output projection. One document of T tokens.
struct Mixer {
  Tensors t;
  int64_t T;
  Segments segments = Segments::whole_rows(1, T);
  Tensor x = t.normal({T, kHidden});
  Tensor in_qkvz = t.normal({kDims.qkvz_columns(), kHidden}, 0.04),
         in_ba = t.normal({kDims.ba_columns(), kHidden}, 0.04);
  GdnInputWeights weights{.conv = t.normal({kDims.conv_channels(), 1, kDims.conv_kernel}, 0.5),
                          .a_log = t.uniform({kDims.value_heads}, 0, 2),
                          .dt_bias = t.uniform({kDims.value_heads}, -6, -2)};
  Tensor norm = t.normal({kDims.value_dim}, 0.1, 1);
  Tensor out = t.normal({kHidden, kDims.value_heads* kDims.value_dim}, 0.04);

  GdnProjections projected{t.empty({T, kDims.qkvz_columns()}), t.empty({T, kDims.ba_columns()})};
  GdnInputs inputs{empty_like_inputs(t, T), t.empty({T, kDims.key_heads}), t.empty({T, kDims.key_heads})};
  Tensor o = t.empty({T, kDims.value_heads, kDims.value_dim}), normed = t.empty(o.shape());
  Tensor rstd = t.empty({T, kDims.value_heads}), y = t.empty({T, kHidden});

  explicit Mixer(const benchmark::State& state) : T(state.range(0)) { forward(); }

  Tensor flat(const Tensor& heads) const { return heads.view({T, kDims.value_heads * kDims.value_dim}); }

  void forward() {
    linear_forward(t.ctx(), projected.qkvz, x, in_qkvz);
    linear_forward(t.ctx(), projected.ba, x, in_ba);
    gdn_inputs_forward(t.ctx(), inputs, projected, weights, segments, kDims);
    gated_delta_rule_forward(t.ctx(), o, inputs.rule, segments);
    gated_rms_norm_forward(t.ctx(), normed, rstd, o, projected.qkvz, norm, 1e-6, kDims);
    linear_forward(t.ctx(), y, flat(normed), out);
  }
};

struct MixerGradients {
  Tensor d_y, d_x, in_qkvz, in_ba, norm, out, normed, o;
  GdnInputWeights weights;
  GdnProjections projected;
  DeltaRuleInputs rule;

  explicit MixerGradients(Mixer& m)
      : d_y(m.t.normal(m.y.shape())),
        d_x(m.t.empty(m.x.shape())),
        in_qkvz(m.t.normal(m.in_qkvz.shape())),
        in_ba(m.t.normal(m.in_ba.shape())),
        norm(m.t.normal(m.norm.shape())),
        out(m.t.normal(m.out.shape())),
        normed(m.t.empty(m.o.shape())),
        o(m.t.normal(m.o.shape())),
        weights{m.t.normal(m.weights.conv.shape()), m.t.normal(m.weights.a_log.shape()),
                m.t.normal(m.weights.dt_bias.shape())},
        projected{m.t.empty(m.projected.qkvz.shape()), m.t.empty(m.projected.ba.shape())},
        rule(empty_like_inputs(m.t, m.T)) {}

  void backward(Mixer& m) {
    Context& ctx = m.t.ctx();
    linear_backward_weight(ctx, out, d_y, m.flat(m.normed));
    linear_backward_input(ctx, m.flat(normed), d_y, m.out);
    gated_rms_norm_backward(ctx, o, projected.qkvz, norm, normed, m.o, m.rstd, m.projected.qkvz, m.norm, kDims);
    gated_delta_rule_backward(ctx, rule, o, m.inputs.rule, m.segments);
    gdn_inputs_backward(ctx, projected, weights, rule, m.inputs, m.projected, m.weights, m.segments, kDims);
    linear_backward_weight(ctx, in_qkvz, projected.qkvz, m.x);
    linear_backward_weight(ctx, in_ba, projected.ba, m.x);
    linear_backward_input(ctx, d_x, projected.qkvz, m.in_qkvz);
    linear_backward_input(ctx, d_x, projected.ba, m.in_ba, Accumulate::kYes);
  }
};

void gdn_mixer_forward(benchmark::State& state) {
  Mixer m(state);
  for (auto _ : state) m.forward();
  set_tokens(state, m.T);
}

void gdn_mixer_backward(benchmark::State& state) {
  Mixer m(state);
  MixerGradients g(m);
  for (auto _ : state) g.backward(m);
  set_tokens(state, m.T);
}

void gated_delta_rule_forward(benchmark::State& state) {
  Mixer m(state);
  for (auto _ : state) gated_delta_rule_forward(m.t.ctx(), m.o, m.inputs.rule, m.segments);
  set_tokens(state, m.T);
}

void gated_delta_rule_backward(benchmark::State& state) {
  Mixer m(state);
  MixerGradients g(m);
  for (auto _ : state) gated_delta_rule_backward(m.t.ctx(), g.rule, g.o, m.inputs.rule, m.segments);
  set_tokens(state, m.T);
}

// Short documents cost no more per token than long ones, as long as they fill their chunks.
void gated_delta_rule_forward_packed(benchmark::State& state) {
  Mixer m(state);
  m.segments = Segments::packed(std::vector<int64_t>(m.T / 256, 256));
  for (auto _ : state) gated_delta_rule_forward(m.t.ctx(), m.o, m.inputs.rule, m.segments);
  set_tokens(state, m.T);
}

void gated_delta_rule_recurrent_forward(benchmark::State& state) {
  Mixer m(state);
  for (auto _ : state) gated_delta_rule_recurrent_forward(m.t.ctx(), m.o, m.inputs.rule, m.segments);
  set_tokens(state, m.T);
}

void gdn_inputs_forward(benchmark::State& state) {
  Mixer m(state);
  for (auto _ : state) gdn_inputs_forward(m.t.ctx(), m.inputs, m.projected, m.weights, m.segments, kDims);
  set_tokens(state, m.T);
}

void gdn_inputs_backward(benchmark::State& state) {
  Mixer m(state);
  MixerGradients g(m);
  g.backward(m);  // gives the delta rule's gradients
  for (auto _ : state)
    gdn_inputs_backward(m.t.ctx(), g.projected, g.weights, g.rule, m.inputs, m.projected, m.weights, m.segments, kDims);
  set_tokens(state, m.T);
}

void gated_rms_norm_forward(benchmark::State& state) {
  Mixer m(state);
  for (auto _ : state) gated_rms_norm_forward(m.t.ctx(), m.normed, m.rstd, m.o, m.projected.qkvz, m.norm, 1e-6, kDims);
  set_tokens(state, m.T);
}

void gated_rms_norm_backward(benchmark::State& state) {
  Mixer m(state);
  MixerGradients g(m);
  g.backward(m);
  for (auto _ : state)
    gated_rms_norm_backward(m.t.ctx(), g.o, g.projected.qkvz, g.norm, g.normed, m.o, m.rstd, m.projected.qkvz, m.norm,
                            kDims);
  set_tokens(state, m.T);
}

void lengths(benchmark::internal::Benchmark* b) {
  b->ArgName("T")->Arg(512)->Arg(2048)->Arg(8192)->UseRealTime()->Unit(benchmark::kMillisecond);
}
void one_length(benchmark::internal::Benchmark* b) {
  b->ArgName("T")->Arg(2048)->UseRealTime()->Unit(benchmark::kMillisecond);
}
BENCHMARK(gated_delta_rule_forward)->Apply(lengths);
BENCHMARK(gated_delta_rule_backward)->Apply(lengths);
BENCHMARK(gdn_mixer_forward)->Apply(lengths);
BENCHMARK(gdn_mixer_backward)->Apply(lengths);
BENCHMARK(gated_delta_rule_forward_packed)->Apply(one_length);
BENCHMARK(gated_delta_rule_recurrent_forward)->Apply(one_length);
BENCHMARK(gdn_inputs_forward)->Apply(one_length);
BENCHMARK(gdn_inputs_backward)->Apply(one_length);
BENCHMARK(gated_rms_norm_forward)->Apply(one_length);
BENCHMARK(gated_rms_norm_backward)->Apply(one_length);

}  // namespace
}  // namespace braid::bench
