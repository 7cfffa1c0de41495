#include "kernels/gdn_inputs.h"

#include "tests/kernels/cuda/cuda_testing.h"

namespace braid {
namespace {

using namespace braid::testing;

constexpr GdnDims kHeadsOf128{.key_heads = 2, .value_heads = 4, .key_dim = 128, .value_dim = 128, .conv_kernel = 4};
constexpr GdnDims kReleased{.key_heads = 16, .value_heads = 32, .key_dim = 128, .value_dim = 128, .conv_kernel = 4};
constexpr GdnDims kOdd{.key_heads = 2, .value_heads = 6, .key_dim = 3, .value_dim = 5, .conv_kernel = 4};
constexpr GdnDims kSixTaps{.key_heads = 2, .value_heads = 4, .key_dim = 40, .value_dim = 24, .conv_kernel = 6};

// Everything of one call, inputs random. What a call adds to starts at random numbers, the rest at NaN, but for d_qkvz,
// whose z columns are not written.
struct Case {
  GdnProjections x, d_x;
  GdnInputWeights weights, d_weights;
  GdnInputs out;
  DeltaRuleInputs d_out;

  std::vector<std::pair<const char*, Tensor>> results() const {
    return {{"q", out.rule.q},
            {"k", out.rule.k},
            {"v", out.rule.v},
            {"beta", out.rule.beta},
            {"log_decay", out.rule.log_decay},
            {"q_rstd", out.q_rstd},
            {"k_rstd", out.k_rstd},
            {"d_qkvz", d_x.qkvz},
            {"d_ba", d_x.ba},
            {"d_conv", d_weights.conv},
            {"d_a_log", d_weights.a_log},
            {"d_dt_bias", d_weights.dt_bias}};
  }
};

class GdnInputsCuda : public CudaTest {
 protected:
  static Tensor wide_rounded(Tensor t) {
    for (int64_t i = 0; i < t.numel(); ++i) t.data<double>()[i] = static_cast<float>(t.data<double>()[i]);
    return t;
  }
  static Case random_case(int64_t N, const GdnDims& d) {
    const int64_t Hk = d.key_heads, Hv = d.value_heads;
    const Shape keys{N, Hk, d.key_dim}, values{N, Hv, d.value_dim}, gates{N, Hv}, key_rows{N, Hk};
    const Shape conv{d.conv_channels(), 1, d.conv_kernel};
    auto unwritten = [](const Shape& shape) { return poisoned(shape, DType::kF64); };
    Case c;
    c.x = {rounded(random_f64({N, d.qkvz_columns()}, 1)), wide_rounded(random_f64({N, d.ba_columns()}, 2, 5))};
    c.weights = {wide_rounded(random_f64(conv, 3, 0.5)), wide_rounded(random_f64({Hv}, 4)),
                 wide_rounded(random_f64({Hv}, 5))};
    c.d_out = {rounded(random_f64(keys, 6)), rounded(random_f64(keys, 7)), rounded(random_f64(values, 8)),
               wide_rounded(random_f64(gates, 9)), wide_rounded(random_f64(gates, 10))};
    c.out = {{unwritten(keys), unwritten(keys), unwritten(values), unwritten(gates), unwritten(gates)},
             unwritten(key_rows),
             unwritten(key_rows)};
    c.d_x = {zeros_f64(c.x.qkvz.shape()), unwritten(c.x.ba.shape())};
    c.d_weights = {random_f64(conv, 11), random_f64({Hv}, 12), random_f64({Hv}, 13)};
    return c;
  }
  static Case case_to_gpu(const Case& c) {
    auto narrow = [](const Tensor& t) { return to_gpu(t, activation()); };
    auto broad = [](const Tensor& t) { return to_gpu(t, wide()); };
    auto rule = [&](const DeltaRuleInputs& r) {
      return DeltaRuleInputs{narrow(r.q), narrow(r.k), narrow(r.v), broad(r.beta), broad(r.log_decay)};
    };
    auto weights = [&](const GdnInputWeights& w) {
      return GdnInputWeights{broad(w.conv), broad(w.a_log), broad(w.dt_bias)};
    };
    return {{narrow(c.x.qkvz), broad(c.x.ba)},
            {narrow(c.d_x.qkvz), narrow(c.d_x.ba)},
            weights(c.weights),
            weights(c.d_weights),
            {rule(c.out.rule), broad(c.out.q_rstd), broad(c.out.k_rstd)},
            rule(c.d_out)};
  }
  static void run(Context& ctx, const Case& c, const Segments& segments, const GdnDims& dims) {
    gdn_inputs_forward(ctx, c.out, c.x, c.weights, segments, dims);
    gdn_inputs_backward(ctx, c.d_x, c.d_weights, c.d_out, c.out, c.x, c.weights, segments, dims);
  }
  void expect_matches_cpu(const Case& c, const Segments& segments, const GdnDims& dims) {
    const Case on_gpu = case_to_gpu(c);
    run(gpu, on_gpu, to_gpu(segments), dims);
    run(cpu, c, segments, dims);
    const auto on_cpu_results = c.results(), on_gpu_results = on_gpu.results();
    for (size_t i = 0; i < on_cpu_results.size(); ++i) {
      const auto& [name, expected] = on_cpu_results[i];
      const Tensor actual = on_gpu_results[i].second;
      // fp32 results are fp32 sums of exact products, whatever the activations.
      expect_matches(actual, expected, name, tolerance_of(actual.dtype()));
    }
  }
};
BRAID_FOR_EACH_ACTIVATION(GdnInputsCuda);

TEST_P(GdnInputsCuda, OneDocument) {
  for (const GdnDims& d : {kHeadsOf128, kOdd, kSixTaps}) {
    for (int64_t N : {1, 2, 3, 4, 65, 128, 131, 300}) {
      SCOPED_TRACE(concat("Dk ", d.key_dim, ", ", N, " tokens"));
      expect_matches_cpu(random_case(N, d), Segments::whole_rows(1, N), d);
    }
  }
}

TEST_P(GdnInputsCuda, PackedDocuments) {
  const Segments segments = Segments::packed({1, 2, 3, 1, 120, 1, 1, 64, 65, 130, 2, 1, 1});
  for (const GdnDims& d : {kHeadsOf128, kOdd, kSixTaps}) {
    SCOPED_TRACE(concat("Dk ", d.key_dim));
    expect_matches_cpu(random_case(segments.num_tokens(), d), segments, d);
  }
}

TEST_P(GdnInputsCuda, HeadsOfTheReleasedModel) {
  expect_matches_cpu(random_case(150, kReleased), Segments::packed({100, 50}), kReleased);
}

TEST_P(GdnInputsCuda, GatesSaturate) {
  Case c = random_case(2, kHeadsOf128);
  // b b a a of the two key heads
  const double logits[] = {-1000, 1000, -1000, 30, -80, 0, 19.5, 20.5};
  for (int64_t i = 0; i < 16; ++i) c.x.ba.data<double>()[i] = logits[i % 8];
  expect_matches_cpu(c, Segments::whole_rows(1, 2), kHeadsOf128);
}

TEST_P(GdnInputsCuda, LargeInputsStayFinite) {
  Case c = random_case(40, kHeadsOf128);
  for (int64_t i = 0; i < c.x.qkvz.numel(); i += 3) c.x.qkvz.data<double>()[i] *= 1000;
  c.x.qkvz = rounded(c.x.qkvz);
  const Case on_gpu = case_to_gpu(c);
  run(gpu, on_gpu, to_gpu(Segments::whole_rows(1, 40)), kHeadsOf128);
  for (const auto& [name, result] : on_gpu.results()) {
    const Tensor values = to_cpu(result);
    EXPECT_TRUE(std::isfinite(dot(values, values))) << name;
  }
}

TEST_P(GdnInputsCuda, LeavesTheGateColumns) {
  for (const GdnDims& d : {kHeadsOf128, kOdd}) {
    Case c = random_case(5, d);
    for (int64_t i = 0; i < c.d_x.qkvz.numel(); ++i) c.d_x.qkvz.data<double>()[i] = 7;
    const Case on_gpu = case_to_gpu(c);
    run(gpu, on_gpu, to_gpu(Segments::whole_rows(1, 5)), d);
    const Tensor d_qkvz = to_cpu(on_gpu.d_x.qkvz);
    for (int64_t t = 0; t < 5; ++t)
      for (int64_t j = 0; j < d.value_heads; ++j)
        for (int64_t i = 0; i < d.value_dim; ++i)
          EXPECT_EQ(value_at(d_qkvz, t * d.qkvz_columns() + d.z_column(j) + i), 7) << t << ' ' << j << ' ' << i;
  }
}

TEST_P(GdnInputsCuda, SameBitsEveryTime) {
  const Segments segments = to_gpu(Segments::packed({1, 700, 64, 3}));
  for (const GdnDims& d : {kHeadsOf128, kSixTaps}) {
    const Case c = random_case(segments.num_tokens(), d);
    expect_same_bits_every_time([&] {
      const Case on_gpu = case_to_gpu(c);
      run(gpu, on_gpu, segments, d);
      std::vector<Tensor> all;
      for (const auto& [name, result] : on_gpu.results()) all.push_back(result);
      return all;
    });
  }
}

TEST_P(GdnInputsCuda, NoTokens) {
  const Case on_gpu = case_to_gpu(random_case(0, kHeadsOf128));
  run(gpu, on_gpu, Segments::packed({}), kHeadsOf128);
}

}  // namespace
}  // namespace braid
