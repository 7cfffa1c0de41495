#include "kernels/adamw.h"

#include <cmath>

#include "kernels/core/moment_codes.h"
#include "kernels/cuda/split_weights.cuh"

namespace braid::cuda {
namespace {

constexpr int kThreads = 256;

// Of an update, in fp32; formed in double as on the CPU.
struct Factors {
  float scale, beta1, one_minus_beta1, beta2, one_minus_beta2, rate, inverse_correction2, eps, decay;

  __device__ __forceinline__ void update(float& master, float& m, float& v, float gradient) const {
    const float g = __fmul_rn(scale, gradient);
    m = fmaf(beta1, m, __fmul_rn(one_minus_beta1, g));
    v = fmaf(beta2, v, __fmul_rn(__fmul_rn(one_minus_beta2, g), g));
    const float change = __fmul_rn(rate, m) / (sqrtf(__fmul_rn(v, inverse_correction2)) + eps);
    master -= fmaf(decay, master, change);
  }
};

// The random bits of elements that begin anywhere in a tensor.
struct Noise : MomentNoise {
  int64_t first;  // element of the tensor where a launch begins

  template <int kCount>
  __device__ __forceinline__ void draw(uint32_t (&bits)[kCount], int64_t at) const {
    const int64_t element = first + at;
    if (kCount == 8 && element % 8 == 0) {
      const auto all = of_eight(element);
#pragma unroll
      for (int i = 0; i < kCount; ++i) bits[i] = bits_of(all, i);
      return;
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const auto all = of_eight(element + i);
      const int place = static_cast<int>((element + i) % 8);
      uint32_t word = all[0];
#pragma unroll
      for (int k = 1; k < 4; ++k) word = place / 2 == k ? all[k] : word;
      bits[i] = word >> place % 2 * 16 & 0xffff;
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
    float mi = first[i], vi = second[i];
    f.update(w.master[i], mi, vi, g[i]);
    first.set(i, mi);
    if constexpr (sizeof(Moment) == 2) second.element[i] = rounded_at_random(vi, bits[i]);
    else second.set(i, vi);
  }
  w.store(weight, low, at);
  first.store(m + at);
  second.store(v + at);
}

constexpr int kLaneElements = 8, kBlockLanes = MomentCodes::kBlock / kLaneElements;

// Over the lanes that own a block; as integers, so that a NaN is larger than all numbers.
__device__ __forceinline__ float block_max(float x) {
  unsigned bits = __float_as_uint(x);
#pragma unroll
  for (int offset = kBlockLanes / 2; offset > 0; offset /= 2)
    bits = max(bits, __shfl_xor_sync(kAllLanes, bits, offset));
  return __uint_as_float(bits);
}
__device__ __forceinline__ float fourth_root_of_share(float x, float scale) {
  return scale > 0 ? sqrtf(sqrtf(x / scale)) : 0.0f;
}

// Up to eight elements in one access if they are all there.
template <class T>
__device__ __forceinline__ Pack<T, kLaneElements> load_some(const T* from, int count) {
  if (count == kLaneElements) return Pack<T, kLaneElements>::load(from);
  Pack<T, kLaneElements> pack{};
  for (int i = 0; i < count; ++i) pack.element[i] = from[i];
  return pack;
}
template <class T>
__device__ __forceinline__ void store_some(const Pack<T, kLaneElements>& pack, T* to, int count) {
  if (count == kLaneElements) return pack.store(to);
  for (int i = 0; i < count; ++i) to[i] = pack.element[i];
}

// The same with codes: half a warp owns a block of 128 elements, a lane eight of them. 15 bytes an element with an fp32
// gradient and 13 with a bf16 one, where bf16 moments take 20 and 18.
template <class Weight, class Gradient>
__global__ void __launch_bounds__(kThreads)
    coded_adamw_kernel(Weight* weight, int16_t* low, uint8_t* m, uint8_t* v, float* m_scale, float* v_scale,
                       const Gradient* gradient, int64_t n, Factors f, Noise noise) {
  const int64_t at = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * kLaneElements, block = at / MomentCodes::kBlock;
  const int count = static_cast<int>(min(int64_t{kLaneElements}, max(int64_t{0}, n - at)));  // 0: takes part in sums
  auto first = load_some(m + at, count), second = load_some(v + at, count);
  const auto g = load_some(gradient + at, count);
  auto high = load_some(weight + at, count);
  Pack<int16_t, kLaneElements> rest{};
  if constexpr (sizeof(Weight) == 2) rest = load_some(low + at, count);
  const float m_unit = MomentCodes::unit_of_m(count > 0 ? m_scale[block] : 0.0f),
              v_unit = MomentCodes::unit_of_v(count > 0 ? v_scale[block] : 0.0f);
  float mi[kLaneElements], vi[kLaneElements], m_most = 0, v_most = 0;
#pragma unroll
  for (int i = 0; i < kLaneElements; ++i) {
    mi[i] = MomentCodes::m_of(first.element[i], m_unit);
    vi[i] = MomentCodes::v_of(second.element[i], v_unit);
    float master;
    if constexpr (sizeof(Weight) == 2) master = join(high.element[i], rest.element[i]);
    else master = high.element[i];
    f.update(master, mi[i], vi[i], g[i]);
    if constexpr (sizeof(Weight) == 2) split(high.element[i], rest.element[i], master);
    else high.element[i] = master;
    m_most = __uint_as_float(max(__float_as_uint(m_most), __float_as_uint(fabsf(mi[i]))));
    v_most = __uint_as_float(max(__float_as_uint(v_most), __float_as_uint(fabsf(vi[i]))));
  }
  const float m_largest = block_max(m_most), v_largest = sqrtf(block_max(v_most));
  const float unit = MomentCodes::unit_of_v(v_largest);
  uint32_t bits[kLaneElements];
  noise.draw(bits, at);
#pragma unroll
  for (int i = 0; i < kLaneElements; ++i) {
    first.element[i] = MomentCodes::code_of_m(mi[i], fourth_root_of_share(fabsf(mi[i]), m_largest));
    second.element[i] = MomentCodes::code_of_v(vi[i], fourth_root_of_share(sqrtf(vi[i]), v_largest), unit, bits[i]);
  }
  store_some(high, weight + at, count);
  if constexpr (sizeof(Weight) == 2) store_some(rest, low + at, count);
  store_some(first, m + at, count);
  store_some(second, v + at, count);
  if (count > 0 && at % MomentCodes::kBlock == 0) m_scale[block] = m_largest, v_scale[block] = v_largest;
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
              Noise{{step.stream, static_cast<uint64_t>(step.step)}, step.first + begin});
      check_launch("adamw_update");
    };
    const int64_t whole = n - n % kMost;
    dispatch_count<kMost>(whole, {&state.weight, &state.low, &state.m, &state.v, &gradient},
                          [&]<int kCount> { run.template operator()<kCount>(0, whole); });
    run.template operator()<1>(whole, n);
  };
  const auto launch_coded = [&]<class Weight, class Gradient> {
    for (const Tensor* t :
         std::initializer_list<const Tensor*>{&state.weight, &state.low, &state.m, &state.v, &gradient})
      check<ShapeError>(reinterpret_cast<uintptr_t>(t->raw()) % 16 == 0,
                        "adamw_update: with moments in U8 tensors begin "
                        "at 16 bytes");
    coded_adamw_kernel<Weight, Gradient><<<ceil_div(n, kThreads * kLaneElements), kThreads, 0, stream_of(ctx)>>>(
        pointer<Weight>(state.weight), state.low.defined() ? pointer<int16_t>(state.low) : nullptr,
        pointer<uint8_t>(state.m), pointer<uint8_t>(state.v), pointer<float>(state.m_scale),
        pointer<float>(state.v_scale), pointer<Gradient>(gradient), n, factors,
        Noise{{step.stream, static_cast<uint64_t>(step.step)}, step.first});
    check_launch("adamw_update");
  };
  dispatch_activation("weight", state.weight, [&]<class Weight> {
    if (state.m.dtype() == DType::kU8)
      return dispatch_activation("gradient", gradient,
                                 [&]<class Gradient> { launch_coded.template operator()<Weight, Gradient>(); });
    dispatch_activation("m", state.m, [&]<class Moment> {
      dispatch_activation("gradient", gradient,
                          [&]<class Gradient> { launch.template operator()<Weight, Moment, Gradient>(); });
    });
  });
}

}  // namespace braid::cuda
