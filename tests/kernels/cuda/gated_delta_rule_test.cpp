#include "kernels/gated_delta_rule.h"

#include "tests/kernels/cuda/cuda_testing.h"

namespace braid {
namespace {

using namespace braid::testing;

struct Dims {
  int64_t Hk = 1, Hv = 2, Dk = 128, Dv = 128;
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

template <class Function>
DeltaRuleInputs map(const DeltaRuleInputs& in, Function&& f) {
  return {.q = f(in.q), .k = f(in.k), .v = f(in.v), .beta = f(in.beta), .log_decay = f(in.log_decay)};
}
std::vector<Tensor> tensors(const DeltaRuleInputs& in) { return {in.q, in.k, in.v, in.beta, in.log_decay}; }
constexpr const char* kNames[] = {"d_q", "d_k", "d_v", "d_beta", "d_log_decay"};

class GatedDeltaRuleCuda : public CudaTest {
 protected:
  // On the CPU, in numbers of the dtypes that the GPU reads.
  static DeltaRuleInputs random_inputs(int64_t N, const Dims& d, double max_decay) {
    return readable({.q = unit_rows(random_f64({N, d.Hk, d.Dk}, 1)),
                     .k = unit_rows(random_f64({N, d.Hk, d.Dk}, 2)),
                     .v = random_f64({N, d.Hv, d.Dv}, 3),
                     .beta = uniform_f64({N, d.Hv}, 0, 1, 4),
                     .log_decay = uniform_f64({N, d.Hv}, -max_decay, 0, 5)});
  }
  static DeltaRuleInputs readable(DeltaRuleInputs in) {
    for (Tensor t : {in.q, in.k, in.v}) rounded(t);
    for (Tensor t : {in.beta, in.log_decay})
      for (int64_t i = 0; i < t.numel(); ++i) t.data<double>()[i] = static_cast<float>(t.data<double>()[i]);
    return in;
  }
  static DeltaRuleInputs inputs_to_gpu(const DeltaRuleInputs& in) {
    return {.q = to_gpu(in.q, activation()),
            .k = to_gpu(in.k, activation()),
            .v = to_gpu(in.v, activation()),
            .beta = to_gpu(in.beta, wide()),
            .log_decay = to_gpu(in.log_decay, wide())};
  }

  struct Result {
    Tensor o;
    DeltaRuleInputs d_in;
    std::vector<Tensor> all() const {
      std::vector<Tensor> list = tensors(d_in);
      list.push_back(o);
      return list;
    }
  };
  Result run_on_gpu(const DeltaRuleInputs& in, const Tensor& d_o, const Segments& segments) {
    auto like = [](const Tensor& t) { return on_gpu(t.shape(), t.dtype()); };
    Result result = {like(in.v), map(in, like)};
    gated_delta_rule_forward(gpu, result.o, in, segments);
    gated_delta_rule_backward(gpu, result.d_in, d_o, in, segments);
    return result;
  }

  void expect_matches_cpu(const DeltaRuleInputs& in, const Segments& segments) {
    expect_matches_cpu(in, segments, tolerance_of(activation()));
  }
  void expect_matches_cpu(const DeltaRuleInputs& in, const Segments& segments, Tolerance tolerance) {
    const Tensor d_o = rounded(random_f64(in.v.shape(), 6));
    auto like = [](const Tensor& t) { return poisoned(t.shape(), DType::kF64); };
    Tensor o = like(in.v);
    const DeltaRuleInputs d_in = map(in, like);
    gated_delta_rule_forward(cpu, o, in, segments);
    gated_delta_rule_backward(cpu, d_in, d_o, in, segments);
    const Result result = run_on_gpu(inputs_to_gpu(in), to_gpu(d_o, activation()), to_gpu(segments));
    expect_matches(result.o, o, "o", tolerance);
    for (size_t i = 0; i < std::size(kNames); ++i)
      expect_matches(tensors(result.d_in)[i], tensors(d_in)[i], kNames[i], tolerance);
  }
};
BRAID_FOR_EACH_ACTIVATION(GatedDeltaRuleCuda);

TEST_P(GatedDeltaRuleCuda, EveryLengthAroundAChunk) {
  for (int64_t length : {1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 130}) {
    SCOPED_TRACE(length);
    // The gradient of log_decay is a difference of sums over the tokens, of which little is left in a short document.
    const Tolerance usual = tolerance_of(activation());
    const Tolerance tolerance = length > 2 ? usual : Tolerance{4 * usual.relative_rms, usual.worst, usual.of_element};
    expect_matches_cpu(random_inputs(length, {}, 0.3), Segments::whole_rows(1, length), tolerance);
  }
}

TEST_P(GatedDeltaRuleCuda, PackedDocuments) {
  const Segments segments = Segments::packed({5, 64, 1, 1, 130, 63, 128, 2});
  expect_matches_cpu(random_inputs(segments.num_tokens(), {.Hk = 2, .Hv = 4}, 0.3), segments);
  expect_matches_cpu(random_inputs(140, {}, 0.3), Segments::whole_rows(2, 70));
}

TEST_P(GatedDeltaRuleCuda, HeadsOfTheReleasedModel) {
  const Segments segments = Segments::packed({70, 26});
  expect_matches_cpu(random_inputs(96, {.Hk = 16, .Hv = 32}, 0.1), segments);
}

// More heads of documents than a GPU has multiprocessors, so that blocks go from one to the next.
TEST_P(GatedDeltaRuleCuda, ManyHeadsOfManyDocuments) {
  const Segments segments = Segments::packed({70, 26, 64, 1, 130, 3, 65, 17});
  expect_matches_cpu(random_inputs(segments.num_tokens(), {.Hk = 16, .Hv = 32}, 0.1), segments);
}

TEST_P(GatedDeltaRuleCuda, PortableKernels) {
  const PortableKernels portable(gpu);
  const Segments segments = Segments::packed({5, 64, 1, 1, 130, 63, 128, 2});
  expect_matches_cpu(random_inputs(segments.num_tokens(), {.Hk = 2, .Hv = 4}, 0.3), segments);
  expect_matches_cpu(random_inputs(1000, {}, 1e-3), Segments::whole_rows(1, 1000));
}

TEST_P(GatedDeltaRuleCuda, OtherNumbersAndSizesOfHeads) {
  for (const Dims& d : {Dims{2, 6, 128, 128}, Dims{3, 3, 128, 128}, Dims{1, 1, 128, 16}, Dims{1, 3, 16, 128},
                        Dims{2, 4, 5, 7}, Dims{2, 2, 64, 64}}) {
    SCOPED_TRACE(concat("Hk ", d.Hk, " Hv ", d.Hv, " Dk ", d.Dk, " Dv ", d.Dv));
    expect_matches_cpu(random_inputs(70, d, 0.3), Segments::packed({3, 67}));
  }
}

TEST_P(GatedDeltaRuleCuda, SlowDecayOverALongDocument) {
  expect_matches_cpu(random_inputs(1000, {}, 1e-3), Segments::whole_rows(1, 1000));
}

TEST_P(GatedDeltaRuleCuda, StrongDecayStaysFinite) {
  // The running sum of the decay reaches -3200 in a chunk: its exponential underflows, the inverse would overflow. In
  // fp32 numbers of that size are 2e-4 apart, which is an error of that size in the exponential of their difference.
  Tolerance tolerance = tolerance_of(activation());
  tolerance.relative_rms = std::max(tolerance.relative_rms, 1e-4);
  tolerance.worst = std::max(tolerance.worst, 2e-3);
  for (const Dims& d : {Dims{}, Dims{.Dk = 24, .Dv = 40}}) {
    expect_matches_cpu(random_inputs(130, d, 50), Segments::whole_rows(1, 130), tolerance);
    DeltaRuleInputs mixed = random_inputs(130, d, 0.3);
    for (int64_t t = 0; t < 130; t += 7) mixed.log_decay.data<double>()[t * d.Hv] = -50;
    for (int64_t j = 0; j < d.Hv; ++j) mixed.log_decay.data<double>()[64 * d.Hv + j] = -1000;
    expect_matches_cpu(mixed, Segments::whole_rows(1, 130), tolerance);
  }
}

TEST_P(GatedDeltaRuleCuda, GatesThatAreClosedOrFullyOpen) {
  DeltaRuleInputs in = random_inputs(140, {}, 0.1);
  for (int64_t i = 0; i < in.beta.numel(); ++i) {
    if (i % 3 != 0) in.beta.data<double>()[i] = i % 3 - 1;
    if (i % 5 == 0) in.log_decay.data<double>()[i] = 0;
  }
  expect_matches_cpu(in, Segments::whole_rows(1, 140));
}

TEST_P(GatedDeltaRuleCuda, KeysThatAlmostCoincide) {
  // Every token overwrites what the last one wrote: what is written is the small difference of two numbers that were
  // rounded to bf16, which costs a few times the usual error.
  DeltaRuleInputs in = random_inputs(200, {}, 0.01);
  for (int64_t i = 0; i < in.k.numel(); ++i)
    in.k.data<double>()[i] = in.k.data<double>()[i % 128] + 0.02 * in.q.data<double>()[i];
  unit_rows(in.k);
  for (int64_t i = 0; i < in.beta.numel(); ++i) in.beta.data<double>()[i] = 1;
  const Tolerance usual = tolerance_of(activation());
  expect_matches_cpu(readable(in), Segments::whole_rows(1, 200), {6 * usual.relative_rms, 6 * usual.worst});
}

TEST_P(GatedDeltaRuleCuda, PackedDocumentsHaveTheBitsOfSeparateOnes) {
  const std::vector<int64_t> lengths = {5, 64, 1, 130, 63};
  const Segments packed = Segments::packed(lengths);
  for (const Dims& d : {Dims{}, Dims{1, 2, 24, 40}}) {
    const DeltaRuleInputs in = inputs_to_gpu(random_inputs(packed.num_tokens(), d, 0.3));
    const Tensor d_o = to_gpu(random_f64(in.v.shape(), 6), activation());
    const Result together = run_on_gpu(in, d_o, to_gpu(packed));
    for (int64_t document = 0; document < packed.num_documents(); ++document) {
      SCOPED_TRACE(concat("Dk ", d.Dk, ", document ", document));
      auto rows = [&](const Tensor& t) { return t.rows(packed.begin(document), packed.end(document)); };
      const Result alone =
          run_on_gpu(map(in, rows), rows(d_o), to_gpu(Segments::whole_rows(1, packed.length(document))));
      for (size_t i = 0; i < alone.all().size(); ++i)
        expect_same_bits(to_cpu(rows(together.all()[i])), to_cpu(alone.all()[i]), concat("tensor ", i).c_str());
    }
  }
}

TEST_P(GatedDeltaRuleCuda, SameBitsEveryTime) {
  const Segments segments = to_gpu(Segments::packed({700, 3, 64, 70}));
  const DeltaRuleInputs in = inputs_to_gpu(random_inputs(segments.num_tokens(), {.Hk = 2, .Hv = 4}, 0.3));
  const Tensor d_o = to_gpu(random_f64(in.v.shape(), 6), activation());
  expect_same_bits_every_time([&] { return run_on_gpu(in, d_o, segments).all(); });
}

TEST_P(GatedDeltaRuleCuda, NoTokens) {
  const DeltaRuleInputs in = inputs_to_gpu(random_inputs(0, {}, 0.3));
  run_on_gpu(in, on_gpu(in.v.shape(), activation()), Segments::packed({}));
}

}  // namespace
}  // namespace braid
