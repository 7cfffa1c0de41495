#include "kernels/adamw.h"

#include <cmath>

#include "kernels/core/philox.h"
#include "kernels/cuda/split_weights.cuh"

namespace braid::cuda {
namespace {

constexpr int kThreads = 256;

// Of an update, in fp32; formed in double as on the CPU.
struct Factors {
  float scale, beta1, one_minus_beta1, beta2, one_minus_beta2, rate, inverse_correction2, eps, decay;
};

// 16 random bits for each element of a tensor in each step: those of eight elements are one number.
struct Noise {
  uint64_t stream, step;
  int64_t first;  // element of the tensor where a launch begins

  template <int kCount>
  __device__ __forceinline__ void draw(uint32_t (&bits)[kCount], int64_t at) const {
    const int64_t element = first + at;
    if (kCount == 8 && element % 8 == 0) {
      const auto all = philox(stream, step, static_cast<uint64_t>(element / 8));
#pragma unroll
      for (int i = 0; i < kCount; ++i) bits[i] = all[i / 2] >> i % 2 * 16 & 0xffff;
      return;
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const auto all = philox(stream, step, static_cast<uint64_t>((element + i) / 8));
      const int of_eight = static_cast<int>((element + i) % 8);
      uint32_t word = all[0];
#pragma unroll
      for (int k = 1; k < 4; ++k) word = of_eight / 2 == k ? all[k] : word;
      bits[i] = word >> of_eight % 2 * 16 & 0xffff;
    }
  }
};

// One of the two bf16 numbers next to x, in the mean x: the nearer one more often.
__device__ __forceinline__ bf16 rounded_at_random(float x, uint32_t bits) {
  if (isnan(x)) return static_cast<bf16>(x);
  return __ushort_as_bfloat16(static_cast<unsigned short>((__float_as_uint(x) + bits) >> 16));
}

// A thread owns kCount consecutive elements. Reads and writes masters, m and v, reads the gradient: 28 bytes per
// element in fp32, 20 with bf16 moments, 18 with a bf16 gradient, too; a bf16 weight and its low bits are as long as an
// fp32 one.
template <int kCount, class Weight, class Moment, class Gradient>
__global__ void __launch_bounds__(kThreads) adamw_kernel(Weight* weight, int16_t* low, Moment* m, Moment* v,
                                                         const Gradient* gradient, int64_t n, Factors f, Noise noise) {
  const int64_t at = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * kCount;
  if (at >= n) return;
  Masters<Weight, kCount> w(weight, low, at);
  auto first = Pack<Moment, kCount>::load(m + at), second = Pack<Moment, kCount>::load(v + at);
  const auto g = Pack<Gradient, kCount>::load(gradient + at);
  uint32_t bits[kCount];
  if constexpr (sizeof(Moment) == 2) noise.draw(bits, at);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const float gi = __fmul_rn(f.scale, g[i]);
    const float mi = fmaf(f.beta1, first[i], __fmul_rn(f.one_minus_beta1, gi));
    const float vi = fmaf(f.beta2, second[i], __fmul_rn(__fmul_rn(f.one_minus_beta2, gi), gi));
    const float change = __fmul_rn(f.rate, mi) / (sqrtf(__fmul_rn(vi, f.inverse_correction2)) + f.eps);
    w.master[i] -= fmaf(f.decay, w.master[i], change);
    first.set(i, mi);
    if constexpr (sizeof(Moment) == 2) second.element[i] = rounded_at_random(vi, bits[i]);
    else second.set(i, vi);
  }
  w.store(weight, low, at);
  first.store(m + at);
  second.store(v + at);
}

}  // namespace

void adamw_update(Context& ctx, AdamWState state, const Tensor& gradient, const AdamWStep& step) {
  const double correction1 = 1 - std::pow(step.beta1, static_cast<double>(step.step));
  const double correction2 = 1 - std::pow(step.beta2, static_cast<double>(step.step));
  const Factors factors = {.scale = static_cast<float>(step.gradient_scale),
                           .beta1 = static_cast<float>(step.beta1),
                           .one_minus_beta1 = static_cast<float>(1 - step.beta1),
                           .beta2 = static_cast<float>(step.beta2),
                           .one_minus_beta2 = static_cast<float>(1 - step.beta2),
                           .rate = static_cast<float>(step.lr / correction1),
                           .inverse_correction2 = static_cast<float>(1 / correction2),
                           .eps = static_cast<float>(step.eps),
                           .decay = static_cast<float>(step.lr * step.weight_decay)};
  const int64_t n = state.weight.numel();
  const auto launch = [&]<class Weight, class Moment, class Gradient> {
    constexpr int kMost = sizeof(Moment) == 2 ? 8 : 4;  // accesses of 16 bytes
    const auto run = [&]<int kCount>(int64_t begin, int64_t end) {
      if (begin == end) return;
      adamw_kernel<kCount, Weight, Moment, Gradient>
          <<<ceil_div(end - begin, kThreads * kCount), kThreads, 0, stream_of(ctx)>>>(
              pointer<Weight>(state.weight) + begin,
              state.low.defined() ? pointer<int16_t>(state.low) + begin : nullptr, pointer<Moment>(state.m) + begin,
              pointer<Moment>(state.v) + begin, pointer<Gradient>(gradient) + begin, end - begin, factors,
              Noise{step.stream, static_cast<uint64_t>(step.step), step.first + begin});
      check_launch("adamw_update");
    };
    const int64_t whole = n - n % kMost;
    dispatch_count<kMost>(whole, {&state.weight, &state.low, &state.m, &state.v, &gradient},
                          [&]<int kCount> { run.template operator()<kCount>(0, whole); });
    run.template operator()<1>(whole, n);
  };
  dispatch_activation("weight", state.weight, [&]<class Weight> {
    dispatch_activation("m", state.m, [&]<class Moment> {
      dispatch_activation("gradient", gradient,
                          [&]<class Gradient> { launch.template operator()<Weight, Moment, Gradient>(); });
    });
  });
}

}  // namespace braid::cuda
