#include "kernels/adamw.h"

#include "kernels/core/moment_codes.h"
#include "tests/kernels/cuda/cuda_testing.h"

namespace braid {
namespace {

using namespace braid::testing;

// The activation dtype is that of the weights that the model computes with; masters and gradients are fp32.
class AdamWCuda : public CudaTest {
 protected:
  static Tensor floats(int64_t n, uint64_t seed, double stddev, double mean = 0) {
    return converted(random_normal({n}, DType::kF32, seed, stddev, mean), DType::kF64);
  }
  // Zero moments beside these masters.
  AdamWState fresh(const Tensor& start, DType moment) {
    const Tensor zero = zeros_f64(start.shape());
    const auto [weight, low] = split_on_gpu(start);
    return {weight, to_gpu(zero, moment), to_gpu(zero, moment), low};
  }
  Tensor master(const AdamWState& state) { return masters_of({state.weight, state.low}); }
  static AdamWStep step(int64_t number) {
    return {.lr = 1e-2,
            .beta1 = 0.9,
            .beta2 = 0.95,
            .eps = 1e-8,
            .weight_decay = 0.1,
            .gradient_scale = number % 2 ? 0.7 : 1,
            .step = number};
  }
};
BRAID_FOR_EACH_ACTIVATION(AdamWCuda);

TEST_P(AdamWCuda, ShardsGiveTheBitsOfTheWhole) {
  const int64_t n = 1003;
  const Tensor start = floats(n, 1, 1), gradient = to_gpu(floats(n, 2, 1), DType::kF32);
  for (const DType moment : {DType::kF32, DType::kBF16}) {
    const int64_t first = 3;  // of the whole in its tensor
    auto at = [&](int64_t t, int64_t begin) {
      AdamWStep s = step(t);
      s.stream = 77, s.first = first + begin;
      return s;
    };
    const AdamWState whole = fresh(start, moment), parts = fresh(start, moment);
    for (int64_t t = 1; t <= 3; ++t) {
      adamw_update(gpu, whole, gradient, at(t, 0));
      for (auto [begin, end] : {std::pair<int64_t, int64_t>{0, 5}, {5, 349}, {349, n}})
        adamw_update(gpu,
                     {parts.weight.rows(begin, end), parts.m.rows(begin, end), parts.v.rows(begin, end),
                      parts.low.defined() ? parts.low.rows(begin, end) : Tensor()},
                     gradient.rows(begin, end), at(t, begin));
    }
    expect_same_bits(to_cpu(master(parts)), to_cpu(master(whole)), "master");
    expect_same_bits(to_cpu(parts.m), to_cpu(whole.m), "m");
    expect_same_bits(to_cpu(parts.v), to_cpu(whole.v), "v");
  }
}

// Moments in a byte each: shards that begin between blocks.
TEST_P(AdamWCuda, ShardsOfMomentsInAByteGiveTheBitsOfTheWhole) {
  constexpr int64_t n = 9 * MomentCodes::kBlock + 3, kBlock = MomentCodes::kBlock, kBlocks = 10;
  const Tensor start = floats(n, 1, 1);
  auto coded = [&] {
    const auto [weight, low] = split_on_gpu(start);
    auto zero = [](int64_t count, DType dtype) { return to_gpu(zeros({count}, dtype)); };
    return AdamWState{weight, zero(n, DType::kU8),        zero(n, DType::kU8),
                      low,    zero(kBlocks, DType::kF32), zero(kBlocks, DType::kF32)};
  };
  const AdamWState whole = coded(), parts = coded();
  for (int64_t t = 1; t <= 5; ++t) {
    const Tensor gradient = to_gpu(floats(n, 2 + t, 1), DType::kF32);
    AdamWStep s = step(t);
    s.stream = 77;
    adamw_update(gpu, whole, gradient, s);
    for (auto [begin, end] : {std::pair<int64_t, int64_t>{0, kBlock}, {kBlock, 6 * kBlock}, {6 * kBlock, n}}) {
      s.first = begin;
      const int64_t block = begin / kBlock, last = (end + kBlock - 1) / kBlock;
      adamw_update(gpu,
                   {parts.weight.rows(begin, end), parts.m.rows(begin, end), parts.v.rows(begin, end),
                    parts.low.defined() ? parts.low.rows(begin, end) : Tensor(), parts.m_scale.rows(block, last),
                    parts.v_scale.rows(block, last)},
                   gradient.rows(begin, end), s);
    }
  }
  expect_same_bits(to_cpu(master(parts)), to_cpu(master(whole)), "master");
  expect_same_bits(to_cpu(parts.m), to_cpu(whole.m), "m");
  expect_same_bits(to_cpu(parts.v), to_cpu(whole.v), "v");
  expect_same_bits(to_cpu(parts.m_scale), to_cpu(whole.m_scale), "m_scale");
  expect_same_bits(to_cpu(parts.v_scale), to_cpu(whole.v_scale), "v_scale");
}

// Masters in fp32, or in bf16 beside their low bits: the same to the last bit.
TEST_P(AdamWCuda, SplitMastersAreThoseInFp32) {
  const int64_t n = 20003;
  const Tensor start = floats(n, 1, 0.02), zero = zeros_f64({n});
  const AdamWState split = fresh(start, DType::kF32);
  const AdamWState plain = {to_gpu(start, DType::kF32), to_gpu(zero, DType::kF32), to_gpu(zero, DType::kF32), {}};
  for (int64_t t = 1; t <= 300; ++t) {
    const Tensor gradient = to_gpu(floats(n, 100 + t, 1e-3), DType::kF32);
    adamw_update(gpu, plain, gradient, step(t));
    adamw_update(gpu, split, gradient, step(t));
  }
  expect_same_bits(to_cpu(master(split)), to_cpu(plain.weight), "master");
  expect_same_bits(to_cpu(split.m), to_cpu(plain.m), "m");
  expect_same_bits(to_cpu(split.v), to_cpu(plain.v), "v");
}

// Gradients whose squares change v by less than half the spacing of bf16: rounded to nearest it would stay where it is.
TEST_P(AdamWCuda, ABf16VFollowsInTheMean) {
  const int64_t n = 40000;
  const Tensor start = floats(n, 1, 1);
  const AdamWState narrow = fresh(start, DType::kBF16), wide = fresh(start, DType::kF32);
  for (const double size : {1e-3, 2e-3}) {  // v rises to the first square, then to the second
    const Tensor gradient = to_gpu(floats(n, 2, size * 0.01, size), DType::kF32);
    for (int64_t t = 1; t <= 3000; ++t) {
      AdamWStep s = step(t);
      s.beta2 = 0.999, s.lr = 1e-4, s.gradient_scale = 1, s.stream = 5;
      adamw_update(gpu, narrow, gradient, s);
      adamw_update(gpu, wide, gradient, s);
    }
    const Tensor actual = to_cpu(narrow.v), expected = to_cpu(wide.v);
    double sum = 0, sum_expected = 0, sum_sq = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double relative = value_at(actual, i) / value_at(expected, i) - 1;
      sum += value_at(actual, i), sum_expected += value_at(expected, i), sum_sq += relative * relative;
    }
    EXPECT_NEAR(sum / sum_expected, 1, 2e-3) << size;
    EXPECT_LT(std::sqrt(sum_sq / double(n)), 0.08) << size;
    std::printf("v off by %.4f RMS, %.5f in the mean\n", std::sqrt(sum_sq / double(n)), sum / sum_expected - 1);
  }
}

}  // namespace
}  // namespace braid
