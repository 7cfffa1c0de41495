#include "kernels/gated_delta_rule.h"
#include "kernels/gdn_inputs.h"
#include "tests/kernels/cuda/bench.h"

// The Gated DeltaNet mixer's own operators, at the released model's sizes.
namespace braid::bench {
namespace {

constexpr int64_t N = 8 * 4096;
constexpr GdnDims kDims{.key_heads = 16, .value_heads = 32, .key_dim = 128, .value_dim = 128, .conv_kernel = 4};
constexpr int64_t Hk = kDims.key_heads, Hv = kDims.value_heads, D = kDims.key_dim;
constexpr double kKeyBytes = 2.0 * N * Hk * D, kValueBytes = 2.0 * N * Hv * D, kGateBytes = 4.0 * N * Hv;

Segments on_gpu(Bench& bench, Segments segments) {
  segments.upload(bench.ctx(),
                  {bench.empty({N + 1}, DType::kI32), bench.empty({N}, DType::kI32), bench.empty({N}, DType::kU8),
                   bench.empty({N + 1}, DType::kI32), bench.empty({N + 1}, DType::kI32)});
  return segments;
}

Segments documents_of(int64_t length) { return Segments::packed(std::vector<int64_t>(N / length, length)); }

struct RuleTensors {
  explicit RuleTensors(Bench& bench)
      : q(bench.random({N, Hk, D}, DType::kBF16, 0.088)),
        k(bench.random({N, Hk, D}, DType::kBF16, 0.088)),
        v(bench.random({N, Hv, D}, DType::kBF16)),
        beta(bench.uniform({N, Hv}, DType::kF32, 0, 1)),
        log_decay(bench.uniform({N, Hv}, DType::kF32, -0.1, 0)) {}
  DeltaRuleInputs operator[](int turn) const { return {q[turn], k[turn], v[turn], beta[turn], log_decay[turn]}; }
  Bench::Tensors q, k, v, beta, log_decay;
};

DeltaRuleInputs empty_rule(Bench& bench) {
  return {bench.empty({N, Hk, D}, DType::kBF16), bench.empty({N, Hk, D}, DType::kBF16),
          bench.empty({N, Hv, D}, DType::kBF16), bench.empty({N, Hv}, DType::kF32), bench.empty({N, Hv}, DType::kF32)};
}

void bench_inputs(Bench& bench) {
  const Segments segments = on_gpu(bench, Segments::whole_rows(8, 4096));
  const Bench::Tensors qkvz = bench.random({N, kDims.qkvz_columns()}, DType::kBF16);
  const Bench::Tensors ba = bench.random({N, kDims.ba_columns()}, DType::kF32);
  const GdnInputWeights weights{bench.random({kDims.conv_channels(), 1, 4}, DType::kF32, 0.5)[0],
                                bench.random({Hv}, DType::kF32)[0], bench.random({Hv}, DType::kF32)[0]};
  const GdnInputs out{empty_rule(bench), bench.empty({N, Hk}, DType::kF32), bench.empty({N, Hk}, DType::kF32)};
  const RuleTensors d_out(bench);
  const GdnProjections d_x{bench.empty({N, kDims.qkvz_columns()}, DType::kBF16),
                           bench.empty({N, kDims.ba_columns()}, DType::kBF16)};
  const GdnInputWeights d_weights{bench.empty({kDims.conv_channels(), 1, 4}, DType::kF32),
                                  bench.empty({Hv}, DType::kF32), bench.empty({Hv}, DType::kF32)};
  const double channels = 2 * kKeyBytes + kValueBytes;
  bench.measure("gdn_inputs_forward", 2 * channels + 4 * kGateBytes, 0, [&](int turn) {
    gdn_inputs_forward(bench.ctx(), out, {qkvz[turn], ba[turn]}, weights, segments, kDims);
  });
  bench.measure("gdn_inputs_backward", 3 * channels + 7 * kGateBytes, 0, [&](int turn) {
    gdn_inputs_backward(bench.ctx(), d_x, d_weights, d_out[turn], out, {qkvz[turn], ba[turn]}, weights, segments,
                        kDims);
  });
}

void bench_rule(Bench& bench, const std::string& what, const Segments& documents) {
  const Segments segments = on_gpu(bench, documents);
  const RuleTensors in(bench);
  const Bench::Tensors d_o = bench.random({N, Hv, D}, DType::kBF16);
  Tensor o = bench.empty({N, Hv, D}, DType::kBF16);
  const DeltaRuleInputs d_in = empty_rule(bench);
  // Products of (64, 128) by (128, 128) and of (64, 64) by (64, 128), forward and backward with what it recomputes.
  constexpr double kState = 2.0 * N * Hv * D * D, kSquare = 2.0 * N * Hv * kDeltaRuleChunk * D;
  bench.measure("gated_delta_rule_forward " + what, 2 * kKeyBytes + 2 * kValueBytes + 2 * kGateBytes,
                3 * kState + 4 * kSquare,
                [&](int turn) { gated_delta_rule_forward(bench.ctx(), o, in[turn], segments); });
  bench.measure("gated_delta_rule_backward " + what, 4 * kKeyBytes + 3 * kValueBytes + 4 * kGateBytes,
                8 * kState + 11 * kSquare,
                [&](int turn) { gated_delta_rule_backward(bench.ctx(), d_in, d_o[turn], in[turn], segments); });
}

}  // namespace
}  // namespace braid::bench

int main() {
  using namespace braid;
  {
    bench::Bench bench;
    bench::bench_inputs(bench);
  }
  const std::pair<const char*, Segments> layouts[] = {{"8 x 4096", Segments::whole_rows(8, 4096)},
                                                      {"1 x 32768", Segments::whole_rows(1, 32768)},
                                                      {"64 x 512", bench::documents_of(512)},
                                                      {"512 x 64", bench::documents_of(64)},
                                                      {"2048 x 16", bench::documents_of(16)}};
  for (const auto& [name, segments] : layouts) {
    bench::Bench bench;
    bench::bench_rule(bench, name, segments);
  }
}
