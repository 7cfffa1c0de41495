#include "kernels/adamw.h"

#include <cmath>

#include "kernels/cuda/common.cuh"

namespace braid::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kAtOnce = 4;  // consecutive elements of a thread

// Of an update, in fp32; formed in double as on the CPU.
struct Factors {
  float scale, beta1, one_minus_beta1, beta2, one_minus_beta2, rate, inverse_correction2, eps, decay;
};

// Consecutive elements, in one access where all tensors are aligned for it.
template <class T, bool kAligned>
__device__ __forceinline__ void load(float (&x)[kAtOnce], const T* from, int count) {
  if constexpr (kAligned) {
    struct alignas(sizeof(T) * kAtOnce) Pack {
      T element[kAtOnce];
    };
    if (count == kAtOnce) {
      const Pack pack = *reinterpret_cast<const Pack*>(from);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) x[i] = static_cast<float>(pack.element[i]);
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < kAtOnce; ++i) x[i] = i < count ? static_cast<float>(from[i]) : 0;
}
template <class T, bool kAligned>
__device__ __forceinline__ void store(T* to, const float (&x)[kAtOnce], int count) {
  if constexpr (kAligned) {
    struct alignas(sizeof(T) * kAtOnce) Pack {
      T element[kAtOnce];
    };
    if (count == kAtOnce) {
      Pack pack;
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) pack.element[i] = static_cast<T>(x[i]);
      *reinterpret_cast<Pack*>(to) = pack;
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < kAtOnce; ++i)
    if (i < count) to[i] = static_cast<T>(x[i]);
}

// A thread owns four consecutive elements. Reads and writes weight, m and v, reads the gradient, writes the rounded
// weight: 28 bytes per element with fp32 moments, 20 with bf16 ones, and 2 for a bf16 rounded weight.
template <class Moment, class Rounded, bool kAligned>
__global__ void __launch_bounds__(kThreads)
    adamw_kernel(float* weight, Moment* m, Moment* v, Rounded* rounded, const float* gradient, int64_t n, Factors f) {
  const int64_t begin = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * kAtOnce;
  if (begin >= n) return;
  const int count = static_cast<int>(min(n - begin, int64_t(kAtOnce)));
  float w[kAtOnce], first[kAtOnce], second[kAtOnce], g[kAtOnce];
  load<float, kAligned>(w, weight + begin, count);
  load<Moment, kAligned>(first, m + begin, count);
  load<Moment, kAligned>(second, v + begin, count);
  load<float, kAligned>(g, gradient + begin, count);
#pragma unroll
  for (int i = 0; i < kAtOnce; ++i) {
    const float gi = f.scale * g[i];
    first[i] = f.beta1 * first[i] + f.one_minus_beta1 * gi;
    second[i] = f.beta2 * second[i] + f.one_minus_beta2 * gi * gi;
    w[i] -= f.rate * first[i] / (sqrtf(second[i] * f.inverse_correction2) + f.eps) + f.decay * w[i];
  }
  store<float, kAligned>(weight + begin, w, count);
  store<Moment, kAligned>(m + begin, first, count);
  store<Moment, kAligned>(v + begin, second, count);
  if (rounded) store<Rounded, kAligned>(rounded + begin, w, count);
}

}  // namespace

void adamw_update(Context& ctx, AdamWState state, Tensor rounded, const Tensor& gradient, const AdamWStep& step) {
  check_dtype(DType::kF32, {{"weight", state.weight}});
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
  const auto launch = [&]<class Moment, class Rounded, bool kAligned> {
    adamw_kernel<Moment, Rounded, kAligned><<<ceil_div(n, kThreads * kAtOnce), kThreads, 0, stream_of(ctx)>>>(
        pointer<float>(state.weight), pointer<Moment>(state.m), pointer<Moment>(state.v), pointer<Rounded>(rounded),
        pointer<float>(gradient), n, factors);
    check_launch("adamw_update");
  };
  dispatch_activation("m", state.m, [&]<class Moment> {
    dispatch_activation("rounded", rounded, [&]<class Rounded> {  // an undefined one counts as F32
      bool aligned = true;
      const auto check_alignment = [&](const void* address, size_t element_bytes) {
        aligned &= reinterpret_cast<uintptr_t>(address) % (kAtOnce * element_bytes) == 0;
      };
      check_alignment(state.weight.raw(), sizeof(float));
      check_alignment(state.m.raw(), sizeof(Moment));
      check_alignment(state.v.raw(), sizeof(Moment));
      check_alignment(rounded.raw(), sizeof(Rounded));
      check_alignment(gradient.raw(), sizeof(float));
      if (aligned) launch.template operator()<Moment, Rounded, true>();
      else launch.template operator()<Moment, Rounded, false>();
    });
  });
}

}  // namespace braid::cuda
