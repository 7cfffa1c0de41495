#include "kernels/gated_delta_rule.h"

#include <omp.h>

#include <array>

#include "tests/messages.h"
#include "tests/testing.h"

namespace braid {
namespace {

using namespace braid::testing;

struct Dims {
  int64_t Hk = 2, Hv = 4, Dk = 16, Dv = 24;
};

Tensor unit_rows(Tensor x) {
  const int64_t width = x.dim(-1);
  for (int64_t row = 0; row < x.numel() / width; ++row) {
    double *begin = x.data<double>() + row * width, sum_sq = 0;
    for (int64_t c = 0; c < width; ++c) sum_sq += begin[c] * begin[c];
    for (int64_t c = 0; c < width; ++c) begin[c] /= std::sqrt(sum_sq);
  }
  return x;
}

DeltaRuleInputs random_inputs(int64_t N, const Dims& d = {}, double max_decay = 0.3) {
  return {.q = unit_rows(random_f64({N, d.Hk, d.Dk}, 1)),
          .k = unit_rows(random_f64({N, d.Hk, d.Dk}, 2)),
          .v = random_f64({N, d.Hv, d.Dv}, 3),
          .beta = uniform_f64({N, d.Hv}, 0, 1, 4),
          .log_decay = uniform_f64({N, d.Hv}, -max_decay, 0, 5)};
}

constexpr std::array kNames = {"q", "k", "v", "beta", "log_decay"};
std::array<Tensor, 5> tensors(const DeltaRuleInputs& in) { return {in.q, in.k, in.v, in.beta, in.log_decay}; }

template <class Function>
DeltaRuleInputs map(const DeltaRuleInputs& in, Function&& f) {
  return {.q = f(in.q), .k = f(in.k), .v = f(in.v), .beta = f(in.beta), .log_decay = f(in.log_decay)};
}

struct Result {
  Tensor o;
  DeltaRuleInputs d_in;
};
Result unwritten(const DeltaRuleInputs& in) {
  auto like = [](const Tensor& t) { return poisoned(t.shape(), t.dtype()); };
  return {like(in.v), map(in, like)};
}
Result run_chunked(const DeltaRuleInputs& in, const Tensor& d_o, const Segments& segments) {
  Context ctx = Context::cpu();
  Result result = unwritten(in);
  gated_delta_rule_forward(ctx, result.o, in, segments);
  gated_delta_rule_backward(ctx, result.d_in, d_o, in, segments);
  return result;
}
Result run_recurrent(const DeltaRuleInputs& in, const Tensor& d_o, const Segments& segments) {
  Context ctx = Context::cpu();
  Result result = unwritten(in);
  gated_delta_rule_recurrent_forward(ctx, result.o, in, segments);
  gated_delta_rule_recurrent_backward(ctx, result.d_in, d_o, in, segments);
  return result;
}

void expect_close(const Result& actual, const Result& expected, double relative) {
  braid::testing::expect_close(actual.o, expected.o, relative, "o");
  for (size_t i = 0; i < kNames.size(); ++i)
    braid::testing::expect_close(tensors(actual.d_in)[i], tensors(expected.d_in)[i], relative, kNames[i]);
}

void expect_chunked_equals_recurrent(const DeltaRuleInputs& in, const Segments& segments) {
  const Tensor d_o = random_f64(in.v.shape(), 6);
  expect_close(run_chunked(in, d_o, segments), run_recurrent(in, d_o, segments), 1e-12);
}

// A forward from an empty state; the chunked one can also go on from another.
using Forward = void (*)(Context&, Tensor, const DeltaRuleInputs&, const Segments&);
constexpr Forward kRecurrent = gated_delta_rule_recurrent_forward;
constexpr Forward kChunked = [](Context& ctx, Tensor o, const DeltaRuleInputs& in, const Segments& segments) {
  gated_delta_rule_forward(ctx, o, in, segments);
};

// Forwards of both forms, for the cases whose result is known by hand.
template <class Check>
void for_both_forms(const DeltaRuleInputs& in, const Segments& segments, Check&& check) {
  Context ctx = Context::cpu();
  for (const Forward forward : {kChunked, kRecurrent}) {
    SCOPED_TRACE(forward == kChunked ? "chunked" : "recurrent");
    Tensor o = poisoned(in.v.shape(), DType::kF64);
    forward(ctx, o, in, segments);
    check(o.data<double>());
  }
}

TEST(GatedDeltaRule, StoresTheValuesOfOrthonormalKeysExactly) {
  // Tokens 0 .. 3 write 1, 2, 3, 4 under the four unit keys; token 4 overwrites key 1. Token t reads key queries[t].
  const int64_t keys[] = {0, 1, 2, 3, 1}, queries[] = {0, 0, 1, 2, 1};
  const double values[] = {1, 2, 3, 4, 50}, expected[] = {1, 1, 2, 3, 50};
  Tensor q = zeros_f64({5, 1, 4}), k = zeros_f64({5, 1, 4});
  for (int64_t t = 0; t < 5; ++t) {
    q.data<double>()[t * 4 + queries[t]] = 1;
    k.data<double>()[t * 4 + keys[t]] = 1;
  }
  const DeltaRuleInputs in{q, k, tensor_of<double>({values, values + 5}, {5, 1, 1}),
                           tensor_of<double>({1, 1, 1, 1, 1}, {5, 1}), zeros_f64({5, 1})};
  for_both_forms(in, Segments::whole_rows(1, 5), [&](const double* o) {
    for (int64_t t = 0; t < 5; ++t) EXPECT_EQ(o[t], 0.5 * expected[t]) << t;  // s = 4^-1/2
  });
}

TEST(GatedDeltaRule, DecaysBeforeItWritesAndReadsWhatItWrote) {
  // One key of size 1, so a step is S = a S + beta (v - a S):  0.5 * 8,  then a S = 2 and 2 + 0.25 * (10 - 2).
  const DeltaRuleInputs in{tensor_of<double>({1, 1}, {2, 1, 1}), tensor_of<double>({1, 1}, {2, 1, 1}),
                           tensor_of<double>({8, 10}, {2, 1, 1}), tensor_of<double>({0.5, 0.25}, {2, 1}),
                           tensor_of<double>({-3, std::log(0.5)}, {2, 1})};
  for_both_forms(in, Segments::whole_rows(1, 2), [](const double* o) {
    EXPECT_DOUBLE_EQ(o[0], 4);
    EXPECT_DOUBLE_EQ(o[1], 4);
  });
  for_both_forms(in, Segments::packed({1, 1}), [](const double* o) { EXPECT_DOUBLE_EQ(o[1], 2.5); });
}

TEST(GatedDeltaRule, ValueHeadsReadTheKeyHeadOfTheirGroup) {
  // Key head 0 reads with weight 1 and key head 1 with weight 10; value head j holds 1 + j.
  const DeltaRuleInputs in{tensor_of<double>({1, 10}, {1, 2, 1}), tensor_of<double>({1, 1}, {1, 2, 1}),
                           tensor_of<double>({1, 2, 3, 4}, {1, 4, 1}), tensor_of<double>({1, 1, 1, 1}, {1, 4}),
                           zeros_f64({1, 4})};
  for_both_forms(in, Segments::whole_rows(1, 1), [](const double* o) {
    const double expected[] = {1, 2, 30, 40};
    for (int64_t j = 0; j < 4; ++j) EXPECT_EQ(o[j], expected[j]) << j;
  });
}

TEST(GatedDeltaRuleGradient, MatchesFiniteDifferencesInDouble) {
  struct Form {
    const char* name;
    Forward forward;
    decltype(&run_chunked) run;
    std::vector<int64_t> lengths;
  };
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);  // thousands of tiny forwards
  for (const Form& form :
       {Form{"recurrent", kRecurrent, run_recurrent, {3, 1, 4}}, Form{"chunked", kChunked, run_chunked, {3, 66}}}) {
    SCOPED_TRACE(form.name);
    Context ctx = Context::cpu();
    const Segments segments = Segments::packed(form.lengths);
    const DeltaRuleInputs in = random_inputs(segments.num_tokens(), {.Hk = 1, .Hv = 2, .Dk = 4, .Dv = 3});
    const Tensor d_o = random_f64(in.v.shape(), 6);
    Tensor o = zeros_f64(in.v.shape());
    auto loss = [&] {
      form.forward(ctx, o, in, segments);
      return dot(o, d_o);
    };
    const Result result = form.run(in, d_o, segments);
    for (size_t i = 0; i < kNames.size(); ++i)
      expect_gradient(loss, tensors(in)[i], tensors(result.d_in)[i], 1e-7, kNames[i]);
  }
  omp_set_num_threads(threads);
}

TEST(GatedDeltaRuleChunked, EqualsTheRecurrence) {
  for (int64_t length : {1, 2, 16, 17, 32, 33, 63, 64, 65, 128, 130}) {
    SCOPED_TRACE(length);
    expect_chunked_equals_recurrent(random_inputs(length), Segments::whole_rows(1, length));
  }
  expect_chunked_equals_recurrent(random_inputs(263), Segments::packed({5, 64, 1, 130, 63}));
  expect_chunked_equals_recurrent(random_inputs(140), Segments::whole_rows(2, 70));
}

TEST(GatedDeltaRuleChunked, EqualsTheRecurrenceForOtherHeadSizes) {
  for (const Dims& d : {Dims{1, 1, 128, 16}, Dims{1, 3, 16, 128}, Dims{3, 3, 5, 7}}) {
    SCOPED_TRACE(concat("Hk ", d.Hk, " Hv ", d.Hv, " Dk ", d.Dk, " Dv ", d.Dv));
    expect_chunked_equals_recurrent(random_inputs(70, d), Segments::packed({3, 67}));
  }
}

TEST(GatedDeltaRuleChunked, StrongDecayStaysFiniteAndEqualsTheRecurrence) {
  // The running sum of the decay reaches -3200 in a chunk: its exponential underflows, the inverse would overflow.
  const DeltaRuleInputs in = random_inputs(130, {}, 50);
  expect_chunked_equals_recurrent(in, Segments::whole_rows(1, 130));
  DeltaRuleInputs mixed = random_inputs(130);
  for (int64_t t = 0; t < 130; t += 7) mixed.log_decay.data<double>()[t * 4] = -50;
  for (int64_t j = 0; j < 4; ++j) mixed.log_decay.data<double>()[64 * 4 + j] = -1000;
  expect_chunked_equals_recurrent(mixed, Segments::whole_rows(1, 130));

  auto fp32 = [](const Tensor& t) { return converted(t, DType::kF32); };
  const Result result =
      run_chunked(map(in, fp32), random_normal(in.v.shape(), DType::kF32, 6), Segments::whole_rows(1, 130));
  EXPECT_TRUE(std::isfinite(dot(result.o, result.o)));
  for (const Tensor& gradient : tensors(result.d_in)) EXPECT_TRUE(std::isfinite(dot(gradient, gradient)));
}

TEST(GatedDeltaRuleChunked, PackedDocumentsHaveTheBitsOfSeparateOnes) {
  const std::vector<int64_t> lengths = {5, 64, 1, 130, 63};
  const Segments packed = Segments::packed(lengths);
  for (DType dtype : {DType::kF32, DType::kF64}) {
    const DeltaRuleInputs in =
        map(random_inputs(packed.num_tokens()), [&](const Tensor& t) { return converted(t, dtype); });
    const Tensor d_o = random_normal(in.v.shape(), dtype, 6);
    const Result together = run_chunked(in, d_o, packed);
    for (int64_t d = 0; d < packed.num_documents(); ++d) {
      SCOPED_TRACE(concat(name_of(dtype), ", document ", d));
      auto rows = [&](const Tensor& t) { return t.rows(packed.begin(d), packed.end(d)); };
      // Copies, so that memory is aligned differently.
      auto alone_rows = [&](const Tensor& t) { return copy_of(rows(t)); };
      const Result alone = run_chunked(map(in, alone_rows), alone_rows(d_o), Segments::whole_rows(1, lengths[d]));
      expect_same_bits(rows(together.o), alone.o, "o");
      for (size_t i = 0; i < kNames.size(); ++i)
        expect_same_bits(rows(tensors(together.d_in)[i]), tensors(alone.d_in)[i], kNames[i]);
    }
  }
}

TEST(GatedDeltaRule, AcceptsNoTokens) {
  const DeltaRuleInputs in = random_inputs(0);
  run_chunked(in, zeros_f64({0, 4, 24}), Segments::packed({}));
  run_recurrent(in, zeros_f64({0, 4, 24}), Segments::packed({}));
}

TEST(GatedDeltaRule, NamesTheTensorOfAWrongShapeOrDtype) {
  Context ctx = Context::cpu();
  const Segments segments = Segments::whole_rows(1, 3);
  const DeltaRuleInputs in = random_inputs(3);
  const Tensor o = zeros_f64({3, 4, 24});
  for (const Forward forward : {kChunked, kRecurrent}) {
    DeltaRuleInputs wrong = in;
    wrong.k = zeros_f64({3, 2, 15});
    EXPECT_EQ(message_of<ShapeError>([&] { forward(ctx, o, wrong, segments); }),
              "k: expected shape (3, 2, 16), got (3, 2, 15)");
    wrong = in;
    wrong.log_decay = zeros({3, 4}, DType::kF32);
    EXPECT_EQ(message_of<DTypeError>([&] { forward(ctx, o, wrong, segments); }),
              "log_decay: expected dtype F64, got F32");
    wrong = random_inputs(3, {.Hk = 2, .Hv = 3});
    EXPECT_EQ(message_of<ShapeError>([&] {
                forward(ctx, zeros_f64({3, 3, 24}), wrong, segments);
              }),
              "v: expected a multiple of 2 heads, got 3");
    EXPECT_EQ(message_of<ShapeError>([&] {
                forward(ctx, zeros_f64({3, 4, 23}), in, segments);
              }),
              "o: expected shape (3, 4, 24), got (3, 4, 23)");
    EXPECT_EQ(message_of<ShapeError>([&] { forward(ctx, o, in, Segments::whole_rows(1, 4)); }),
              "q: expected 4 tokens, got 3");
  }
  const auto chunked = [](Context& ctx, DeltaRuleInputs d_in, const Tensor& d_o, const DeltaRuleInputs& in,
                          const Segments& segments) { gated_delta_rule_backward(ctx, d_in, d_o, in, segments); };
  for (auto backward : {+chunked, gated_delta_rule_recurrent_backward}) {
    DeltaRuleInputs d_in = in;
    d_in.beta = zeros_f64({3, 5});
    EXPECT_EQ(message_of<ShapeError>([&] { backward(ctx, d_in, o, in, segments); }),
              "d_beta: expected shape (3, 4), got (3, 5)");
    EXPECT_EQ(message_of<ShapeError>([&] {
                backward(ctx, in, zeros_f64({3, 4, 23}), in, segments);
              }),
              "d_o: expected shape (3, 4, 24), got (3, 4, 23)");
  }
}

}  // namespace
}  // namespace braid
