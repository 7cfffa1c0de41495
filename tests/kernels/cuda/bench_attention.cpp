#include "kernels/attention.h"
#include "kernels/attention_inputs.h"
#include "kernels/cuda/attention_backends.h"
#include "tests/kernels/cuda/bench.h"

namespace braid::bench {
namespace {

constexpr int64_t kHq = 16, kHkv = 2, kDh = 256, kRotary = 64;
constexpr DType kActivation = DType::kBF16, kWide = DType::kF32;

Segments on_gpu(Bench& bench, Segments segments) {
  const int64_t N = segments.num_tokens();
  segments.upload(bench.ctx(),
                  {bench.empty({N + 1}, DType::kI32), bench.empty({N}, DType::kI32), bench.empty({N}, DType::kU8),
                   bench.empty({N + 1}, DType::kI32), bench.empty({N + 1}, DType::kI32)});
  return segments;
}

// Rows of documents of many lengths, about a thousand tokens in the mean.
Segments documents(int64_t num_rows, int64_t row_tokens) {
  Segments s{num_rows, row_tokens, {0}, std::vector<uint8_t>(num_rows * row_tokens, 1), {}};
  const int64_t lengths[] = {700, 90, 2300, 400, 1500, 30, 1100, 250, 3000, 800};
  for (int64_t row = 0, d = 0; row < num_rows; ++row)
    for (int64_t left = row_tokens; left > 0; ++d) {
      const int64_t length = std::min(left, lengths[d % 10]);
      s.offsets.push_back(s.offsets.back() + length);
      left -= length;
    }
  return s;
}

void measure_inputs(Bench& bench, const Segments& segments) {
  const int64_t N = segments.num_tokens();
  const double head_bytes = 2.0 * N * (kHq + kHkv) * kDh;  // of the query and key heads, once
  const AttentionDims dims = {kHq, kHkv, kDh, kRotary, 1e7, 1e-6};
  Bench::Tensors q_gate = bench.random({N, kHq, 2, kDh}, kActivation), k = bench.random({N, kHkv, kDh}, kActivation);
  Bench::Tensors d_q = bench.random({N, kHq, kDh}, kActivation), d_k = bench.random({N, kHkv, kDh}, kActivation);
  const AttentionInputWeights weights = {bench.random({kDh}, kWide, 0.1)[0], bench.random({kDh}, kWide, 0.1)[0]};
  const AttentionInputWeights d_weights = {bench.random({kDh}, kWide)[0], bench.random({kDh}, kWide)[0]};
  const AttentionInputs out = {bench.empty({N, kHq, kDh}, kActivation), bench.empty({N, kHkv, kDh}, kActivation),
                               bench.empty({N, kHq}, kWide), bench.empty({N, kHkv}, kWide)};
  const AttentionProjections d_x = {bench.empty({N, kHq, 2, kDh}, kActivation),
                                    bench.empty({N, kHkv, kDh}, kActivation)};
  bench.measure("attention_inputs_forward", 2 * head_bytes, 0, [&](int turn) {
    attention_inputs_forward(bench.ctx(), out, {q_gate[turn], k[turn]}, weights, segments, dims);
  });
  bench.measure("attention_inputs_backward", 3 * head_bytes, 0, [&](int turn) {
    attention_inputs_backward(bench.ctx(), d_x, d_weights, d_q[turn], d_k[turn], out, {q_gate[turn], k[turn]}, weights,
                              segments, dims);
  });
}

void measure_attention(Bench& bench, const std::string& name, const Segments& segments) {
  const int64_t N = segments.num_tokens();
  double pairs = 0;  // of a query and a key it sees
  for (int64_t d = 0; d < segments.num_documents(); ++d)
    pairs += 0.5 * double(segments.length(d)) * double(segments.length(d) + 1);
  const double product = 2 * pairs * kHq * kDh;  // FLOP of one of the 2 products of forward, or 5 of backward
  const AttentionTensors in = {
      bench.random({N, kHq, kDh}, kActivation)[0], bench.random({N, kHkv, kDh}, kActivation)[0],
      bench.random({N, kHkv, kDh}, kActivation)[0], bench.random({N, kHq, 2, kDh}, kActivation)[0]};
  const Tensor d_y = bench.random({N, kHq, kDh}, kActivation)[0];
  AttentionOutputs out = {bench.empty({N, kHq, kDh}, kActivation), bench.empty({N, kHq, kDh}, kActivation),
                          bench.empty({N, kHq}, kWide)};
  AttentionGradients d_in = {bench.empty({N, kHq, kDh}, kActivation), bench.empty({N, kHkv, kDh}, kActivation),
                             bench.empty({N, kHkv, kDh}, kActivation), bench.empty({N, kHq, 2, kDh}, kActivation)};
  Context& ctx = bench.ctx();
  const AttentionImplementation implementation = attention_implementation(ctx, in, segments);
  std::printf("%s: %lld documents; forward %s, backward %s\n", name.c_str(),
              static_cast<long long>(segments.num_documents()), implementation.forward.c_str(),
              implementation.backward.c_str());
  bench.measure(name + " attention_forward", 0, 2 * product, [&](int) { attention_forward(ctx, out, in, segments); });
  bench.measure(name + " attention_backward", 0, 5 * product,
                [&](int) { attention_backward(ctx, d_in, d_y, in, out, segments); });
  const cuda::AttentionOutputGradient d_out = {bench.random({N, kHq, kDh}, kActivation)[0],
                                               bench.random({N, kHq}, kWide)[0]};
  bench.measure(name + " own forward", 0, 2 * product,
                [&](int) { cuda::mma_attention_forward(ctx, out, in, segments); });
  bench.measure(name + " own backward", 0, 5 * product,
                [&](int) { cuda::mma_attention_backward(ctx, d_in, d_out, in, out, segments); });
}

}  // namespace
}  // namespace braid::bench

int main() {
  using namespace braid;
  using namespace braid::bench;
  Bench bench;
  const Segments whole = on_gpu(bench, Segments::whole_rows(8, 4096));
  measure_inputs(bench, whole);
  measure_attention(bench, "8x4096 whole", whole);
  measure_attention(bench, "8x4096 packed", on_gpu(bench, documents(8, 4096)));
  measure_attention(bench, "1x32768 whole", on_gpu(bench, Segments::whole_rows(1, 32768)));
}
