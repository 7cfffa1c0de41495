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
};
BRAID_FOR_EACH_ACTIVATION(GatedDeltaRuleCuda);

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

}  // namespace
}  // namespace braid
