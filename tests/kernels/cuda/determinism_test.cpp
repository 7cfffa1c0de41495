#include <cstdio>
#include <set>

#include "kernels/adamw.h"
#include "kernels/attention.h"
#include "kernels/attention_inputs.h"
#include "kernels/embedding.h"
#include "kernels/expert_rows.h"
#include "kernels/experts.h"
#include "kernels/gated_rms_norm.h"
#include "kernels/gdn_inputs.h"
#include "kernels/lm_head_loss.h"
#include "kernels/load_balance.h"
#include "kernels/matmul.h"
#include "kernels/mtp_inputs.h"
#include "kernels/random.h"
#include "kernels/rms_norm.h"
#include "kernels/router.h"
#include "kernels/sum_squares.h"
#include "kernels/swiglu.h"
#include "tests/kernels/cuda/competing_stream.h"
#include "tests/kernels/cuda/cuda_testing.h"

namespace braid {
namespace {

using namespace braid::testing;

// Every operator of the catalogue a hundred times, while another stream keeps the GPU busy and scratch memory holds
// something else each time: one hash of all that it writes. Sizes are those of the released model where kernels depend
// on them, with enough tokens for several blocks on every multiprocessor.
class DeterminismCuda : public CudaTest {
 protected:
  static constexpr int kRepeats = 100;
  static constexpr int64_t kSpoiltBytes = int64_t{64} << 20;

  void SetUp() override {
    CudaTest::SetUp();
    if (!IsSkipped()) competitor_ = std::make_unique<CompetingStream>(gpu);
  }
  void TearDown() override {
    if (!competitor_) return;
    gpu.synchronize();
    EXPECT_GT(competitor_->turns(), 0) << "nothing competed";
  }

  // GPU memory of this test.
  Tensor empty(Shape shape, DType dtype) {
    const Tensor t(nullptr, dtype, shape, Device::kCuda);
    memory_.push_back(allocate_memory(Device::kCuda, std::max<int64_t>(1, t.bytes())));
    check<OutOfMemoryError>(memory_.back() != nullptr, "no GPU memory for a test");
    return Tensor(memory_.back().get(), dtype, shape, Device::kCuda);
  }
  Tensor narrow(Shape shape) { return empty(shape, activation()); }
  Tensor broad(Shape shape) { return empty(shape, wide()); }
  Tensor random(Shape shape, DType dtype, double stddev = 1, double mean = 0) {
    Tensor t = empty(shape, dtype);
    fill_normal(gpu, t, mean, stddev, ++seed_, 0, 0);
    return t;
  }
  Tensor random(Shape shape, double stddev = 1) { return random(shape, activation(), stddev); }
  Tensor random_broad(Shape shape, double stddev = 1, double mean = 0) { return random(shape, wide(), stddev, mean); }
  Tensor uniform(Shape shape, double low, double high) {
    Tensor t = broad(shape);
    fill_uniform(gpu, t, low, high, ++seed_, 0, 0);
    return t;
  }
  template <class T, class Value>
  Tensor integers(int64_t count, Value&& value) {
    std::vector<T> values(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) values[i] = value(i);
    Tensor t = empty({count}, dtype_of<T>());
    copy(gpu, t, Tensor::of(values.data(), {count}));
    return t;
  }
  // Documents of many lengths, around the sizes of chunks and tiles.
  static Segments documents() {
    std::vector<int64_t> lengths;
    for (int64_t i = 0; i < 40; ++i) lengths.insert(lengths.end(), {1, 63, 64, 65 + i, 3 * i + 2, 127});
    return to_gpu(Segments::packed(lengths));
  }

  // The hashes of what `body` writes in kRepeats runs; `outputs`, all that it writes, are zero before each.
  std::vector<int64_t> hashes_of(const std::vector<Tensor>& outputs, const std::function<void()>& body) {
    Tensor hashes = empty({kRepeats}, DType::kI64);
    for (int i = 0; i < kRepeats; ++i) {
      for (const Tensor& t : outputs) fill_zero(gpu, t);
      spoil_scratch(gpu, kSpoiltBytes, i * 37 & 255);
      body();
      hash_on_gpu(gpu, hashes.rows(i, i + 1), outputs);
    }
    const Tensor host = to_cpu(hashes);
    return {host.data<int64_t>(), host.data<int64_t>() + kRepeats};
  }
  void expect_one_hash(const std::string& name, const std::vector<Tensor>& outputs, const std::function<void()>& body) {
    const std::vector<int64_t> hashes = hashes_of(outputs, body);
    const size_t different = std::set<int64_t>(hashes.begin(), hashes.end()).size();
    std::printf("%-45s %-4s  %016llx\n", name.c_str(), name_of(activation()),
                static_cast<unsigned long long>(hashes[0]));
    EXPECT_EQ(different, 1u) << name << " (" << name_of(activation()) << ") gave " << different
                             << " different results in " << kRepeats << " runs";
  }

 private:
  std::vector<std::shared_ptr<std::byte>> memory_;
  std::unique_ptr<CompetingStream> competitor_;
  uint64_t seed_ = 0;
};
BRAID_FOR_EACH_ACTIVATION(DeterminismCuda);

constexpr int64_t kTokens = 4096, kHidden = 2048;

// What the other tests stand on: the hash sees one bit, and where it is; two outputs changing places change it.
TEST_P(DeterminismCuda, HashSeesEveryBit) {
  const Tensor x = random({1000, 3}), y = random({1000, 3});
  Tensor hashes = empty({4}, DType::kI64);
  hash_on_gpu(gpu, hashes.rows(0, 1), {x, y});
  hash_on_gpu(gpu, hashes.rows(1, 2), {y, x});
  hash_on_gpu(gpu, hashes.rows(2, 3), {x, y});
  Tensor last = x.rows(999, 1000), first = x.rows(0, 1);
  copy(gpu, last, first);
  hash_on_gpu(gpu, hashes.rows(3, 4), {x, y});
  const Tensor h = to_cpu(hashes);
  EXPECT_NE(h.data<int64_t>()[0], h.data<int64_t>()[1]);
  EXPECT_EQ(h.data<int64_t>()[0], h.data<int64_t>()[2]);
  EXPECT_NE(h.data<int64_t>()[0], h.data<int64_t>()[3]);
}

// One run of a hundred that differs, and scratch that is read before it is written, are seen.
TEST_P(DeterminismCuda, NoticesWhatDiffers) {
  Tensor x = narrow({100000});
  int turn = 0;
  const std::vector<int64_t> hashes = hashes_of({x}, [&] { fill_normal(gpu, x, 0, 1, ++turn == 57 ? 1 : 2, 0, 0); });
  EXPECT_EQ(std::set<int64_t>(hashes.begin(), hashes.end()).size(), 2u);
  EXPECT_NE(hashes[56], hashes[0]);
  const std::vector<int64_t> unwritten = hashes_of({x}, [&] {
    Scratch scratch(gpu);
    copy(gpu, x, scratch.tensor(x.shape(), x.dtype()));
  });
  EXPECT_GT(std::set<int64_t>(unwritten.begin(), unwritten.end()).size(), 50u);
}

TEST_P(DeterminismCuda, Norms) {
  const int64_t N = kTokens, C = kHidden;
  const Tensor x = random({N, C}), delta = random({N, C}), d_y = random({N, C}), weight = random_broad({C}, 0.1);
  Tensor y = narrow({N, C}), sum = narrow({N, C}), rstd = broad({N}), d_x = narrow({N, C}), d_weight = broad({C});
  expect_one_hash("rms_norm_forward", {y, rstd}, [&] { rms_norm_forward(gpu, y, rstd, x, weight, 1e-6); });
  expect_one_hash("rms_norm_backward", {d_x, d_weight},
                  [&] { rms_norm_backward(gpu, d_x, d_weight, d_y, x, weight, rstd); });
  expect_one_hash("add_rms_norm_forward", {y, sum, rstd},
                  [&] { add_rms_norm_forward(gpu, y, sum, rstd, x, delta, weight, 1e-6); });
  expect_one_hash("add_rms_norm_backward", {d_x, d_weight},
                  [&] { add_rms_norm_backward(gpu, d_x, d_weight, d_y, sum, weight, rstd); });

  const MtpInputWeights weights = {weight, random_broad({C}, 0.1)}, d_weights = {d_weight, broad({C})};
  const MtpInputs out = {narrow({N, 2 * C}), broad({N}), broad({N})};
  const Tensor d_joined = random({N, 2 * C});
  expect_one_hash("mtp_inputs_forward", {out.joined, out.embedding_rstd, out.hidden_rstd},
                  [&] { mtp_inputs_forward(gpu, out, x, delta, weights, 1e-6); });
  expect_one_hash("mtp_inputs_backward", {d_x, y, d_weights.embedding_norm, d_weights.hidden_norm},
                  [&] { mtp_inputs_backward(gpu, d_x, y, d_weights, d_joined, x, delta, out, weights); });
}

TEST_P(DeterminismCuda, Products) {
  const int64_t N = kTokens, I = kHidden, O = 1536;
  const Tensor x = random({N, I}), weight = random({O, I}, 0.02), d_y = random({N, O});
  Tensor y = narrow({N, O}), y_wide = broad({N, O}), d_x = narrow({N, I}), d_weight = broad({O, I}), c = narrow({I, O});
  expect_one_hash("linear_forward", {y}, [&] { linear_forward(gpu, y, x, weight); });
  expect_one_hash("linear_forward, wide output", {y_wide}, [&] { linear_forward(gpu, y_wide, x, weight); });
  expect_one_hash("linear_backward_input", {d_x}, [&] { linear_backward_input(gpu, d_x, d_y, weight); });
  expect_one_hash("linear_backward_weight", {d_weight}, [&] { linear_backward_weight(gpu, d_weight, d_y, x); });
  expect_one_hash("matmul", {c}, [&] { matmul(gpu, c, x, Transpose::kYes, d_y, Transpose::kNo); });
}

TEST_P(DeterminismCuda, ElementWise) {
  const int64_t N = kTokens, F = 512;
  const Tensor a = random({N, F}), b = random({N, F}), gate = random_broad({N, 1}), d_h = random({N, F});
  Tensor h = narrow({N, F}), d_a = narrow({N, F}), d_b = narrow({N, F}), d_gate = narrow({N, 1});
  expect_one_hash("swiglu_forward", {h}, [&] { swiglu_forward(gpu, h, a, b, gate); });
  expect_one_hash("swiglu_backward", {d_a, d_b, d_gate},
                  [&] { swiglu_backward(gpu, d_a, d_b, d_gate, d_h, a, b, gate); });

  const Tensor wide_source = random_broad({N, F});
  expect_one_hash("convert", {h}, [&] { convert(gpu, h, wide_source); });
  expect_one_hash("copy", {h}, [&] { copy(gpu, h, a); });
  expect_one_hash("fill_normal", {h}, [&] { fill_normal(gpu, h, 0, 1, 7, 3, 11); });
  expect_one_hash("fill_uniform", {h}, [&] { fill_uniform(gpu, h, -1, 1, 7, 3, 11); });
  Tensor sum = empty({1}, DType::kF64);
  expect_one_hash("sum_squares", {sum}, [&] { sum_squares(gpu, sum, a); });

  const int64_t n = N * F + 5;
  const Tensor gradient = random({n}, DType::kF32, 1e-3);
  Tensor weight = empty({n}, DType::kF32), m = empty({n}, DType::kF32), v = empty({n}, DType::kF32);
  Tensor rounded = narrow({n}), m_bf16 = empty({n}, DType::kBF16), v_bf16 = empty({n}, DType::kBF16);
  const AdamWStep step = {
      .lr = 1e-3, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .gradient_scale = 0.5, .step = 3};
  expect_one_hash("adamw_update", {weight, m, v, rounded}, [&] {
    adamw_update(gpu, {weight, m, v}, rounded, gradient, step);
  });
  expect_one_hash("adamw_update, bf16 moments", {weight, m_bf16, v_bf16, rounded}, [&] {
    adamw_update(gpu, {weight, m_bf16, v_bf16}, rounded, gradient, step);
  });
}

TEST_P(DeterminismCuda, EmbeddingAndHead) {
  const int64_t N = kTokens, C = kHidden, V = 5003;
  const Tensor table = random({V, C}, 0.02), hidden = random({N, C}), d_y = random({N, C});
  // Some ids a thousand times, some never, some tokens without one.
  const Tensor ids = integers<int64_t>(N, [&](int64_t n) { return n % 9 == 4 ? -1 : n % 4 == 0 ? 7 : n * n % V; });
  Tensor y = narrow({N, C}), d_table = broad({V, C}), loss = empty({1}, DType::kF64), d_hidden = narrow({N, C});
  expect_one_hash("embedding_forward", {y}, [&] { embedding_forward(gpu, y, ids, table); });
  expect_one_hash("embedding_backward", {d_table}, [&] { embedding_backward(gpu, d_table, d_y, ids); });
  expect_one_hash("lm_head_loss_forward", {loss}, [&] { lm_head_loss_forward(gpu, loss, hidden, table, ids); });
  expect_one_hash("lm_head_loss_forward_backward", {loss, d_hidden, d_table},
                  [&] { lm_head_loss_forward_backward(gpu, loss, d_hidden, d_table, hidden, table, ids, 1e-3); });
}

TEST_P(DeterminismCuda, GatedDeltaNet) {
  // Heads of the released model, and heads that only general kernels serve.
  for (const GdnDims& d : {GdnDims{8, 16, 128, 128, 4}, GdnDims{2, 4, 24, 40, 4}}) {
    const std::string heads = concat(", heads of ", d.key_dim);
    const Segments segments = documents();
    const int64_t N = segments.num_tokens(), Hk = d.key_heads, Hv = d.value_heads, Dk = d.key_dim, Dv = d.value_dim;
    const GdnProjections x = {random({N, d.qkvz_columns()}), random_broad({N, d.ba_columns()})};
    const GdnInputWeights weights = {random_broad({d.conv_channels(), 1, d.conv_kernel}, 0.5), random_broad({Hv}),
                                     random_broad({Hv})};
    auto rule = [&] {
      return DeltaRuleInputs{narrow({N, Hk, Dk}), narrow({N, Hk, Dk}), narrow({N, Hv, Dv}), broad({N, Hv}),
                             broad({N, Hv})};
    };
    const GdnInputs out = {rule(), broad({N, Hk}), broad({N, Hk})};
    const DeltaRuleInputs& in = out.rule;
    expect_one_hash("gdn_inputs_forward" + heads, {in.q, in.k, in.v, in.beta, in.log_decay, out.q_rstd, out.k_rstd},
                    [&] { gdn_inputs_forward(gpu, out, x, weights, segments, d); });

    const Tensor d_o = random({N, Hv, Dv});
    const DeltaRuleInputs d_in = rule();
    Tensor o = narrow({N, Hv, Dv});
    expect_one_hash("gated_delta_rule_forward" + heads, {o}, [&] { gated_delta_rule_forward(gpu, o, in, segments); });
    expect_one_hash("gated_delta_rule_backward" + heads, {d_in.q, d_in.k, d_in.v, d_in.beta, d_in.log_decay},
                    [&] { gated_delta_rule_backward(gpu, d_in, d_o, in, segments); });

    const GdnProjections d_x = {narrow(x.qkvz.shape()), narrow(x.ba.shape())};
    const GdnInputWeights d_weights = {broad(weights.conv.shape()), broad({Hv}), broad({Hv})};
    expect_one_hash("gdn_inputs_backward" + heads,
                    {d_x.qkvz, d_x.ba, d_weights.conv, d_weights.a_log, d_weights.dt_bias},
                    [&] { gdn_inputs_backward(gpu, d_x, d_weights, d_in, out, x, weights, segments, d); });

    const Tensor scale = random_broad({Dv}, 0.2, 1);
    Tensor y = narrow({N, Hv, Dv}), rstd = broad({N, Hv}), d_scale = broad({Dv}), d_normed = narrow({N, Hv, Dv});
    expect_one_hash("gated_rms_norm_forward" + heads, {y, rstd},
                    [&] { gated_rms_norm_forward(gpu, y, rstd, o, x.qkvz, scale, 1e-6, d); });
    expect_one_hash("gated_rms_norm_backward" + heads, {d_normed, d_x.qkvz, d_scale},
                    [&] { gated_rms_norm_backward(gpu, d_normed, d_x.qkvz, d_scale, d_o, o, rstd, x.qkvz, scale, d); });
  }
}

TEST_P(DeterminismCuda, Attention) {
  const AttentionDims dims = {
      .query_heads = 8, .kv_heads = 2, .head_dim = 256, .rotary_dim = 64, .rope_theta = 1e7, .eps = 1e-6};
  const int64_t Hq = dims.query_heads, Hkv = dims.kv_heads, Dh = dims.head_dim;
  for (const Segments& segments : {to_gpu(Segments::whole_rows(4, 1024)), documents()}) {
    const std::string layout = segments.num_rows > 1 ? ", whole rows" : ", packed";
    const int64_t N = segments.num_tokens();
    const AttentionProjections x = {random({N, Hq, 2, Dh}), random({N, Hkv, Dh})};
    const AttentionInputWeights weights = {random_broad({Dh}, 0.1), random_broad({Dh}, 0.1)};
    const AttentionInputs inputs = {narrow({N, Hq, Dh}), narrow({N, Hkv, Dh}), broad({N, Hq}), broad({N, Hkv})};
    expect_one_hash("attention_inputs_forward" + layout, {inputs.q, inputs.k, inputs.q_rstd, inputs.k_rstd},
                    [&] { attention_inputs_forward(gpu, inputs, x, weights, segments, dims); });

    const AttentionTensors in = {inputs.q, inputs.k, random({N, Hkv, Dh}), x.q_gate};
    const AttentionOutputs out = {narrow({N, Hq, Dh}), narrow({N, Hq, Dh}), broad({N, Hq})};
    const AttentionGradients d_in = {narrow({N, Hq, Dh}), narrow({N, Hkv, Dh}), narrow({N, Hkv, Dh}),
                                     narrow({N, Hq, 2, Dh})};
    const Tensor d_y = random({N, Hq, Dh});
    const AttentionImplementation by = attention_implementation(gpu, in, segments);
    std::printf("attention%s: forward %s, backward %s\n", layout.c_str(), by.forward.c_str(), by.backward.c_str());
    expect_one_hash("attention_forward" + layout, {out.y, out.o, out.lse},
                    [&] { attention_forward(gpu, out, in, segments); });
    expect_one_hash("attention_backward" + layout, {d_in.q, d_in.k, d_in.v, d_in.q_gate},
                    [&] { attention_backward(gpu, d_in, d_y, in, out, segments); });

    const AttentionProjections d_x = {narrow(x.q_gate.shape()), narrow(x.k.shape())};
    const AttentionInputWeights d_weights = {broad({Dh}), broad({Dh})};
    expect_one_hash("attention_inputs_backward" + layout, {d_x.q_gate, d_x.k, d_weights.q_norm, d_weights.k_norm}, [&] {
      attention_inputs_backward(gpu, d_x, d_weights, d_in.q, d_in.k, inputs, x, weights, segments, dims);
    });
  }
}

TEST_P(DeterminismCuda, MixtureOfExperts) {
  const int64_t B = 2, N = 1024, E = 24, K = 4, C = kHidden, F = 512, R = N * K + 37;
  Segments host_segments = Segments::whole_rows(B, N / B);
  for (int64_t n = 0; n < N; n += 11) host_segments.valid[n] = 0;
  const Segments segments = to_gpu(host_segments);
  const Tensor logits = random_broad({N, E}, 2), x = random({N, C});
  const RouterOutputs out = {
      empty({N, K}, DType::kI32), broad({N, K}),          broad({N, E}), broad({N}), empty({B, E}, DType::kI64),
      empty({B, E}, DType::kF64), empty({B}, DType::kF64)};
  expect_one_hash("router_forward", {out.expert_id, out.gate, out.prob, out.lse, out.counts, out.prob_sum, out.z_sum},
                  [&] { router_forward(gpu, out, logits, segments, GateNorm::kTopK); });
  Tensor d_logits = narrow({N, E}), d_prob = empty({B, E}, DType::kF64), sums = empty({2}, DType::kF64);
  Tensor totals = empty({1, E}, DType::kI64);
  expect_one_hash("add_counts", {totals}, [&] { add_counts(gpu, totals.view({E}), out.counts); });
  expect_one_hash("load_balance", {d_prob, sums},
                  [&] { load_balance(gpu, d_prob, sums, totals, out, 1e-2, 1.0 / double(N)); });
  const Tensor d_gate = random_broad({N, K});
  expect_one_hash("router_backward", {d_logits},
                  [&] { router_backward(gpu, d_logits, d_gate, d_prob, 1e-3, out, segments, GateNorm::kTopK); });

  const ExpertOrder order = {empty({N, K}, DType::kI32), empty({N * K}, DType::kI32), empty({E}, DType::kI64)};
  expect_one_hash("expert_order", {order.row_of_slot, order.slot_of_row, order.rows_per_expert},
                  [&] { expert_order(gpu, order, out.expert_id); });
  Tensor gathered = narrow({N * K, C}), combined = narrow({N, C});
  expect_one_hash("gather_rows", {gathered}, [&] { gather_rows(gpu, gathered, x, order); });
  expect_one_hash("combine_rows", {combined}, [&] { combine_rows(gpu, combined, gathered, order); });
  Tensor place = empty({N, std::min<int64_t>(K, 2)}, DType::kI32);
  expect_one_hash("token_places", {place}, [&] { token_places(gpu, place, out.expert_id, E / 2, N, 1); });

  // More rows than are used, as under a bound.
  Tensor rows = random({R, C}), d_out = random({R, C});
  const Tensor row_gate = uniform({R}, 0, 1);
  const ExpertWeights weights = {random({E, 2 * F, C}, 0.02), random({E, C, F}, 0.04)};
  const ExpertWeights d_weights = {broad({E, 2 * F, C}), broad({E, C, F})};
  Tensor rows_out = narrow({R, C}), gate_up_out = narrow({R, 2 * F}), d_rows = narrow({R, C}), d_row_gate = broad({R});
  expect_one_hash("experts_forward", {rows_out, gate_up_out},
                  [&] { experts_forward(gpu, rows_out, gate_up_out, rows, row_gate, order.rows_per_expert, weights); });
  expect_one_hash("experts_backward", {d_rows, d_row_gate, d_weights.gate_up, d_weights.down}, [&] {
    experts_backward(gpu, d_rows, d_row_gate, d_weights, d_out, rows, row_gate, gate_up_out, order.rows_per_expert,
                     weights);
  });
}

}  // namespace
}  // namespace braid
