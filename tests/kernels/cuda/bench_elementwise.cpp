// Passes over memory at the sizes of Qwen3-Next, 8 x 4096 tokens in bf16; bytes are the least that an operator needs.
#include <algorithm>
#include <cmath>

#include "kernels/adamw.h"
#include "kernels/embedding.h"
#include "kernels/gated_rms_norm.h"
#include "kernels/mtp_inputs.h"
#include "kernels/rms_norm.h"
#include "kernels/sum_squares.h"
#include "kernels/swiglu.h"
#include "tests/kernels/cuda/bench.h"

namespace braid::bench {
namespace {

constexpr int64_t kN = 8 * 4096, kC = 2048;
constexpr double kEps = 1e-6;
constexpr DType kActivation = DType::kBF16, kWide = DType::kF32;

void rms_norm(Bench& b) {
  Bench::Tensors x = b.random({kN, kC}, kActivation), delta = b.random({kN, kC}, kActivation),
                 d_y = b.random({kN, kC}, kActivation);
  Tensor weight = b.random({kC}, kWide, 0.1)[0], rstd = b.uniform({kN}, kWide, 0.5, 2)[0];
  Tensor y = b.empty({kN, kC}, kActivation), d_x = b.empty({kN, kC}, kActivation), d_weight = b.random({kC}, kWide)[0];
  const double unit = 2.0 * kN * kC;
  b.measure("rms_norm_forward", 2 * unit, 0,
            [&](int turn) { rms_norm_forward(b.ctx(), y, rstd, x[turn], weight, kEps); });
  b.measure("rms_norm_backward", 3 * unit, 0,
            [&](int turn) { rms_norm_backward(b.ctx(), d_x, d_weight, d_y[turn], x[turn], weight, rstd); });
  b.measure("add_rms_norm_forward", 4 * unit, 0,
            [&](int turn) { add_rms_norm_forward(b.ctx(), y, d_x, rstd, x[turn], delta[turn], weight, kEps); });
  b.measure("add_rms_norm_backward", 4 * unit, 0,
            [&](int turn) { add_rms_norm_backward(b.ctx(), delta[turn], d_weight, d_y[turn], x[turn], weight, rstd); });
}

void mtp_inputs(Bench& b) {
  Bench::Tensors embedding = b.random({kN, kC}, kActivation), hidden = b.random({kN, kC}, kActivation);
  Bench::Tensors d_joined = b.random({kN, 2 * kC}, kActivation), d_hidden = b.random({kN, kC}, kActivation);
  const MtpInputWeights weights = {b.random({kC}, kWide, 0.1)[0], b.random({kC}, kWide, 0.1)[0]};
  const MtpInputWeights d_weights = {b.random({kC}, kWide)[0], b.random({kC}, kWide)[0]};
  MtpInputs out = {b.empty({kN, 2 * kC}, kActivation), b.empty({kN}, kWide), b.empty({kN}, kWide)};
  Tensor d_embedding = b.empty({kN, kC}, kActivation);
  const double unit = 2.0 * kN * kC;
  b.measure("mtp_inputs_forward", 4 * unit, 0,
            [&](int turn) { mtp_inputs_forward(b.ctx(), out, embedding[turn], hidden[turn], weights, kEps); });
  b.measure("mtp_inputs_backward", 7 * unit, 0, [&](int turn) {
    mtp_inputs_backward(b.ctx(), d_embedding, d_hidden[turn], d_weights, d_joined[turn], embedding[turn], hidden[turn],
                        out, weights);
  });
}

void gated_rms_norm(Bench& b) {
  const GdnDims dims{.key_heads = 16, .value_heads = 32, .key_dim = 128, .value_dim = 128, .conv_kernel = 4};
  const Shape heads = {kN, dims.value_heads, dims.value_dim};
  Bench::Tensors o = b.random(heads, kActivation), d_y = b.random(heads, kActivation),
                 qkvz = b.random({kN, dims.qkvz_columns()}, kActivation);
  Tensor weight = b.random({dims.value_dim}, kWide, 0.1, 1)[0], d_weight = b.random({dims.value_dim}, kWide)[0];
  Tensor y = b.empty(heads, kActivation), rstd = b.uniform({kN, dims.value_heads}, kWide, 0.5, 2)[0],
         d_o = b.empty(heads, kActivation);
  Tensor d_qkvz = b.empty({kN, dims.qkvz_columns()}, kActivation);
  const double unit = 2.0 * kN * dims.value_heads * dims.value_dim;
  b.measure("gated_rms_norm_forward", 3 * unit, 0,
            [&](int turn) { gated_rms_norm_forward(b.ctx(), y, rstd, o[turn], qkvz[turn], weight, kEps, dims); });
  b.measure("gated_rms_norm_backward", 5 * unit, 0, [&](int turn) {
    gated_rms_norm_backward(b.ctx(), d_o, d_qkvz, d_weight, d_y[turn], o[turn], rstd, qkvz[turn], weight, dims);
  });
}

void swiglu(Bench& b) {
  constexpr int64_t F = 512;
  Bench::Tensors x = b.random({kN, F}, kActivation), up = b.random({kN, F}, kActivation),
                 d_h = b.random({kN, F}, kActivation);
  Bench::Tensors h = b.random({kN, F}, kActivation), d_a = b.random({kN, F}, kActivation),
                 d_b = b.random({kN, F}, kActivation);
  Tensor gate = b.random({kN, 1}, kWide)[0], d_gate = b.empty({kN, 1}, kActivation);
  const double unit = 2.0 * kN * F;
  b.measure("swiglu_forward", 3 * unit, 0,
            [&](int turn) { swiglu_forward(b.ctx(), h[turn], x[turn], up[turn], gate); });
  b.measure("swiglu_backward", 5 * unit, 0, [&](int turn) {
    swiglu_backward(b.ctx(), d_a[turn], d_b[turn], d_gate, d_h[turn], x[turn], up[turn], gate);
  });
}

// Ids as uneven as those of text: the most frequent one has about one token in thirty.
void embedding(Bench& b) {
  constexpr int64_t V = 151936;
  std::vector<int64_t> ids(kN);
  for (int64_t n = 0; n < kN; ++n) {
    const auto bits = philox(1, 2, static_cast<uint64_t>(n));
    const double u = unit_interval(bits[0], bits[1]);
    ids[n] = static_cast<int64_t>(std::pow(double(V), u)) * 7919 % V;  // density 1 / rank, ranks spread over the table
  }
  std::vector<int64_t> distinct = ids;
  std::sort(distinct.begin(), distinct.end());
  const auto num_distinct = std::unique(distinct.begin(), distinct.end()) - distinct.begin();
  Bench::Tensors d_y = b.random({kN, kC}, kActivation);
  Tensor table = b.random({V, kC}, kActivation)[0], d_table = b.random({V, kC}, kWide)[0],
         y = b.empty({kN, kC}, kActivation);
  const Tensor gpu_ids = b.upload(ids, {kN});
  b.measure("embedding_forward", 2.0 * kN * kC + 2.0 * double(num_distinct) * kC, 0,
            [&](int) { embedding_forward(b.ctx(), y, gpu_ids, table); });
  b.measure("embedding_backward", 2.0 * kN * kC + 8.0 * double(num_distinct) * kC, 0,
            [&](int turn) { embedding_backward(b.ctx(), d_table, d_y[turn], gpu_ids); });
}

void optimizer(Bench& b) {
  const int64_t n = int64_t{128} << 20;
  const Tensor gradient = b.random({n}, kWide, 1e-3)[0];
  Tensor weight = b.random({n}, kWide)[0], rounded = b.empty({n}, kActivation), sum = b.empty({1}, DType::kF64);
  const AdamWStep step{
      .lr = 1e-4, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .gradient_scale = 0.7, .step = 2};
  for (DType moment : {kWide, kActivation}) {
    const AdamWState state = {weight, b.random({n}, moment, 1e-3)[0], b.uniform({n}, moment, 1e-6, 1e-5)[0]};
    b.measure(moment == kActivation ? "adamw_update, bf16 moments" : "adamw_update",
              (moment == kActivation ? 22.0 : 30.0) * double(n), 0,
              [&](int) { adamw_update(b.ctx(), state, rounded, gradient, step); });
  }
  b.measure("sum_squares", 4.0 * double(n), 0, [&](int) { sum_squares(b.ctx(), sum, gradient); });
}

}  // namespace
}  // namespace braid::bench

int main() {
  using namespace braid::bench;
  for (auto* family : {rms_norm, mtp_inputs, gated_rms_norm, swiglu, embedding, optimizer}) {
    Bench bench;  // its memory goes with it
    family(bench);
  }
}
