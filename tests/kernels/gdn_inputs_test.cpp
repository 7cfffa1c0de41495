#include "kernels/gdn_inputs.h"

#include <algorithm>

#include "tests/messages.h"
#include "tests/testing.h"

namespace braid {
namespace {

using namespace braid::testing;

constexpr GdnDims kDims{.key_heads = 2, .value_heads = 4, .key_dim = 3, .value_dim = 5, .conv_kernel = 4};

// Everything of one call, inputs random. d_qkvz starts at zero, because its z columns are not written.
struct Case {
  explicit Case(Segments s, DType dtype = DType::kF64, const GdnDims& d = kDims) : dims(d), segments(std::move(s)) {
    const int64_t N = segments.num_tokens(), Hk = d.key_heads, Hv = d.value_heads;
    const Shape keys{N, Hk, d.key_dim}, values{N, Hv, d.value_dim}, gates{N, Hv}, key_rows{N, Hk};
    auto random = [&](const Shape& shape, uint64_t seed) { return random_normal(shape, dtype, seed); };
    auto unwritten = [&](const Shape& shape) { return poisoned(shape, dtype); };
    x = {random({N, d.qkvz_columns()}, 1), random({N, d.ba_columns()}, 2)};
    weights = {random({d.conv_channels(), 1, d.conv_kernel}, 3), random({Hv}, 4), random({Hv}, 5)};
    d_out = {random(keys, 6), random(keys, 7), random(values, 8), random(gates, 9), random(gates, 10)};
    out = {{unwritten(keys), unwritten(keys), unwritten(values), unwritten(gates), unwritten(gates)},
           unwritten(key_rows),
           unwritten(key_rows)};
    d_x = {zeros(x.qkvz.shape(), dtype), unwritten(x.ba.shape())};
    d_weights = {zeros(weights.conv.shape(), dtype), zeros({Hv}, dtype), zeros({Hv}, dtype)};
  }
  void forward() { gdn_inputs_forward(ctx, out, x, weights, segments, dims); }
  void backward() { gdn_inputs_backward(ctx, d_x, d_weights, d_out, out, x, weights, segments, dims); }
  double loss() {
    forward();
    return dot(out.rule.q, d_out.q) + dot(out.rule.k, d_out.k) + dot(out.rule.v, d_out.v) +
           dot(out.rule.beta, d_out.beta) + dot(out.rule.log_decay, d_out.log_decay);
  }
  std::vector<Tensor> outputs() const {  // per token
    return {out.rule.q, out.rule.k, out.rule.v, out.rule.beta, out.rule.log_decay,
            out.q_rstd, out.k_rstd, d_x.qkvz,   d_x.ba};
  }
  std::vector<Tensor> weight_gradients() const { return {d_weights.conv, d_weights.a_log, d_weights.dt_bias}; }

  Context ctx = Context::cpu();
  GdnDims dims;
  Segments segments;
  GdnProjections x, d_x;
  GdnInputWeights weights, d_weights;
  GdnInputs out;
  DeltaRuleInputs d_out;
};

double silu(double x) { return x / (1 + std::exp(-x)); }

TEST(GdnDims, MatchesThePackingOfTheReleasedModel) {
  constexpr GdnDims d{.key_heads = 16, .value_heads = 32, .key_dim = 128, .value_dim = 128, .conv_kernel = 4};
  EXPECT_EQ(d.qkvz_columns(), 12288);
  EXPECT_EQ(d.ba_columns(), 64);
  EXPECT_EQ(d.conv_channels(), 8192);
  for (int64_t h = 0; h < 16; ++h) {
    EXPECT_EQ(d.q_column(h), 768 * h);
    EXPECT_EQ(d.k_column(h), 768 * h + 128);
    EXPECT_EQ(d.q_channel(h), 128 * h);
    EXPECT_EQ(d.k_channel(h), 2048 + 128 * h);
    for (int64_t r = 0; r < 2; ++r) {
      const int64_t j = 2 * h + r;
      EXPECT_EQ(d.v_column(j), 768 * h + 256 + 128 * r);
      EXPECT_EQ(d.z_column(j), 768 * h + 512 + 128 * r);
      EXPECT_EQ(d.v_channel(j), 4096 + 128 * j);
      EXPECT_EQ(d.b_column(j), 4 * h + r);
      EXPECT_EQ(d.a_column(j), 4 * h + 2 + r);
    }
  }
}

TEST(GdnInputs, ReadsBlocksPerKeyHeadAndConvolvesInFlatOrder) {
  // Two key heads with two value heads each, all of size 2. A block of qkvz is q(2) k(2) v(2 2) z(2 2), a block of ba
  // is b b a a; the channels are q(2 2) k(2 2) v(2 2 2 2). Channel c has the single tap c + 1.
  constexpr GdnDims dims{.key_heads = 2, .value_heads = 4, .key_dim = 2, .value_dim = 2, .conv_kernel = 4};
  Case c(Segments::whole_rows(1, 1), DType::kF64, dims);
  for (int64_t i = 0; i < 24; ++i) c.x.qkvz.data<double>()[i] = 0.01 * (i + 1);
  for (int64_t i = 0; i < 8; ++i) c.x.ba.data<double>()[i] = 0.1 * (i + 1);
  for (int64_t i = 0; i < 16 * 4; ++i) c.weights.conv.data<double>()[i] = i % 4 == 3 ? i / 4 + 1 : 0;
  for (int64_t j = 0; j < 4; ++j) c.weights.a_log.data<double>()[j] = c.weights.dt_bias.data<double>()[j] = 0;
  c.forward();

  auto conv = [](int64_t channel, int64_t column) { return silu((channel + 1) * 0.01 * (column + 1)); };
  auto expect_normalised = [&](const Tensor& y, int64_t head, int64_t channel, int64_t column) {
    const double y0 = conv(channel, column), y1 = conv(channel + 1, column + 1);
    const double r = 1 / std::sqrt(y0 * y0 + y1 * y1 + 1e-6);
    EXPECT_DOUBLE_EQ(y.data<double>()[head * 2], y0 * r);
    EXPECT_DOUBLE_EQ(y.data<double>()[head * 2 + 1], y1 * r);
  };
  expect_normalised(c.out.rule.q, 0, 0, 0);
  expect_normalised(c.out.rule.q, 1, 2, 12);
  expect_normalised(c.out.rule.k, 0, 4, 2);
  expect_normalised(c.out.rule.k, 1, 6, 14);
  const int64_t v_columns[] = {4, 5, 6, 7, 16, 17, 18, 19};
  for (int64_t i = 0; i < 8; ++i) EXPECT_DOUBLE_EQ(c.out.rule.v.data<double>()[i], conv(8 + i, v_columns[i])) << i;
  const int64_t b_columns[] = {0, 1, 4, 5}, a_columns[] = {2, 3, 6, 7};
  for (int64_t j = 0; j < 4; ++j) {
    EXPECT_DOUBLE_EQ(c.out.rule.beta.data<double>()[j], 1 / (1 + std::exp(-0.1 * (b_columns[j] + 1)))) << j;
    EXPECT_DOUBLE_EQ(c.out.rule.log_decay.data<double>()[j], -std::log1p(std::exp(0.1 * (a_columns[j] + 1)))) << j;
  }
}

TEST(GdnInputs, TheLastTapMultipliesTheCurrentTokenAndNoneCrossesADocument) {
  Case c(Segments::packed({3, 5}));
  const int64_t column = kDims.v_column(1), channel = kDims.v_channel(1);
  const double x[] = {1, 0, 0, 0, 0, 0, 2, 0}, taps[] = {0.1, 0.2, 0.3, 0.4};
  for (int64_t t = 0; t < 8; ++t) c.x.qkvz.data<double>()[t * 52 + column] = x[t];
  std::copy_n(taps, 4, c.weights.conv.data<double>() + channel * 4);
  c.forward();
  // The first impulse ends with its document although one tap is left; the second lasts to the end of the second.
  const double expected[] = {0.4, 0.3, 0.2, 0, 0, 0, 0.8, 0.6};
  for (int64_t t = 0; t < 8; ++t)
    EXPECT_DOUBLE_EQ(c.out.rule.v.data<double>()[(t * 4 + 1) * 5], silu(expected[t])) << t;
}

TEST(GdnInputs, GatesSaturate) {
  for (DType dtype : {DType::kF32, DType::kF64}) {
    Case c(Segments::whole_rows(1, 1), dtype);
    // b b a a of the two key heads
    c.x.ba = converted(tensor_of<double>({-1000, 1000, -1000, 30, -80, 0, 19.5, 20.5}, {1, 8}), dtype);
    c.weights.a_log = converted(tensor_of<double>({0, 0, 0, 1}, {4}), dtype);
    c.weights.dt_bias = zeros({4}, dtype);
    c.forward();
    const double beta[] = {0, 1, std::exp(-80), 0.5};
    const double log_decay[] = {0, -30, -std::log1p(std::exp(19.5)), -std::exp(1) * 20.5};
    const double tolerance = dtype == DType::kF64 ? 1e-14 : 3e-7;
    for (int64_t j = 0; j < 4; ++j) {
      EXPECT_NEAR(value_at(c.out.rule.beta, j), beta[j], tolerance * beta[j]) << j;
      EXPECT_NEAR(value_at(c.out.rule.log_decay, j), log_decay[j], tolerance * -log_decay[j]) << j;
    }
  }
}

TEST(GdnInputsGradient, LeavesTheGateColumnsAndAddsToTheWeights) {
  Case c(Segments::packed({3, 4}));
  c.forward();
  c.backward();
  const Tensor once = copy_of(c.d_x.qkvz);
  std::vector<Tensor> weights_once;
  for (const Tensor& gradient : c.weight_gradients()) weights_once.push_back(copy_of(gradient));
  std::fill_n(c.d_x.qkvz.data<double>(), once.numel(), 7.0);
  c.backward();
  for (int64_t i = 0; i < once.numel(); ++i) {
    const bool is_z = i % 26 >= 16;  // of the 26 columns of a block
    EXPECT_EQ(c.d_x.qkvz.data<double>()[i], is_z ? 7.0 : once.data<double>()[i]) << i;
  }
  for (size_t w = 0; w < weights_once.size(); ++w)
    for (int64_t i = 0; i < weights_once[w].numel(); ++i)
      EXPECT_NEAR(value_at(c.weight_gradients()[w], i), 2 * value_at(weights_once[w], i), 1e-13);
}

TEST(GdnInputs, PackedDocumentsHaveTheBitsOfSeparateOnes) {
  const Segments packed = Segments::packed({1, 3, 200, 64, 65});
  for (DType dtype : {DType::kF32, DType::kF64}) {
    Case together(packed, dtype);
    together.forward();
    together.backward();
    GdnInputWeights d_weights = Case(Segments::packed({1}), dtype).d_weights;  // zeros
    for (int64_t d = 0; d < packed.num_documents(); ++d) {
      SCOPED_TRACE(concat(name_of(dtype), ", document ", d));
      // Copies, so that memory is aligned differently.
      auto rows = [&](const Tensor& t) { return t.rows(packed.begin(d), packed.end(d)); };
      auto alone_rows = [&](const Tensor& t) { return copy_of(rows(t)); };
      Case alone(Segments::whole_rows(1, packed.length(d)), dtype);
      alone.x = {alone_rows(together.x.qkvz), alone_rows(together.x.ba)};
      const DeltaRuleInputs& all = together.d_out;
      alone.d_out = {alone_rows(all.q), alone_rows(all.k), alone_rows(all.v), alone_rows(all.beta),
                     alone_rows(all.log_decay)};
      alone.d_weights = d_weights;
      alone.forward();
      alone.backward();
      for (size_t i = 0; i < alone.outputs().size(); ++i)
        expect_same_bits(rows(together.outputs()[i]), alone.outputs()[i], concat("output ", i).c_str());
    }
    expect_same_bits(together.d_weights.conv, d_weights.conv, "conv");
    expect_same_bits(together.d_weights.a_log, d_weights.a_log, "a_log");
    expect_same_bits(together.d_weights.dt_bias, d_weights.dt_bias, "dt_bias");
  }
}

TEST(GdnInputs, NamesTheTensorOfAWrongShapeOrDtype) {
  const Segments segments = Segments::whole_rows(1, 3);
  Case c(segments);
  c.weights.conv = zeros_f64({32, 1, 3});
  EXPECT_EQ(message_of<ShapeError>([&] { c.forward(); }), "conv: expected shape (32, 1, 4), got (32, 1, 3)");
  c = Case(segments);
  c.out.rule.beta = zeros({3, 4}, DType::kF32);
  EXPECT_EQ(message_of<DTypeError>([&] { c.forward(); }), "beta: expected dtype F64, got F32");
  c = Case(segments);
  c.d_x.ba = zeros_f64({3, 7});
  EXPECT_EQ(message_of<ShapeError>([&] { c.backward(); }), "d_ba: expected shape (3, 8), got (3, 7)");
  c = Case(segments);
  c.segments = Segments::whole_rows(1, 4);
  EXPECT_EQ(message_of<ShapeError>([&] { c.forward(); }), "qkvz: expected 4 tokens, got 3");
}

}  // namespace
}  // namespace braid
