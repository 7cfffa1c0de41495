#include "kernels/adamw.h"

#include <cmath>

#include "kernels/core/moment_codes.h"
#include "kernels/cuda/split_weights.cuh"

namespace braid::cuda {
namespace {

constexpr int kThreads = 256;

// To 2^-22 of themselves, in one instruction each. What is smaller than normal numbers counts as 0.
__device__ __forceinline__ float near_root(float x) {
  float root;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(x));
  return root;
}
__device__ __forceinline__ float near_inverse(float x) {
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(x));
  return inverse;
}

// Of an update, in fp32; formed in double as on the CPU.
struct Factors {
  float scale, beta1, one_minus_beta1, beta2, one_minus_beta2, rate, inverse_correction2, inverse_root_correction2, eps,
      decay;

  __device__ __forceinline__ void update(float& master, float& m, float& v, float gradient) const {
    move(m, v, gradient);
    const float change = __fmul_rn(rate, m) / (sqrtf(__fmul_rn(v, inverse_correction2)) + eps);
    master -= fmaf(decay, master, change);
  }
  // The same with a change that is off by some 3e-7 of itself, and the root of v.
  __device__ __forceinline__ void update_nearly(float& master, float& m, float& v_root, float v, float gradient) const {
    move(m, v, gradient);
    v_root = near_root(v);
    const float change = __fmul_rn(rate, m) * near_inverse(fmaf(v_root, inverse_root_correction2, eps));
    master -= fmaf(decay, master, change);
  }

 private:
  __device__ __forceinline__ void move(float& m, float& v, float gradient) const {
    const float g = __fmul_rn(scale, gradient);
    m = fmaf(beta1, m, __fmul_rn(one_minus_beta1, g));
    v = fmaf(beta2, v, __fmul_rn(__fmul_rn(one_minus_beta2, g), g));
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

// MomentCodes, with roots that are off by 2^-21 of themselves: what is as near as that to where one code ends and the
// next begins may get either. Codes become numbers, and numbers codes, by the digits of 2^23 + n: instructions that
// convert would take turns with roots at the unit that makes both.
struct NearCodes : MomentCodes {
  static constexpr uint32_t kTwo23 = 0x4b000000;  // the bits of 2^23

  static __device__ __forceinline__ float m_of_code(uint8_t code, float unit) {
    return m_of_number(__uint_as_float(kTwo23 | (code ^ 0x80u)) - (0x1p23f + 128), unit);
  }
  static __device__ __forceinline__ float v_of_code(uint8_t code, float unit) {
    return v_of_number(__uint_as_float(kTwo23 | code) - 0x1p23f, unit);
  }
  //   inverse: of the largest |m| of the block
  static __device__ __forceinline__ uint8_t code_of_m(float m, float inverse) {
    const float share = copysignf(near_root(near_root(fabsf(m) * inverse)), m);
    // Gradients in bf16 are often a 16th of the largest, which is half way between codes 63 and 64: such ties go up, as
    // with exact roots, since what is multiplied by is more than 127 by more than what roots are off. A negative code
    // is in two's complement.
    return static_cast<uint8_t>(__float_as_uint(fmaf(share, 127.00003f, 0x1.8p23f)));
  }
  //   root: of v;   inverse: of the largest root of the block;   random: 16 bits
  static __device__ __forceinline__ uint8_t code_of_v(float root, float inverse, uint32_t random) {
    const float share = root * inverse;  // of numbers whose eighth roots are codes
    const float floor = fminf(__fmaf_rd(near_root(near_root(share)), 255, 0x1p23f), 0x1p23f + 254);
    const float low = floor - 0x1p23f, fourth = share * 4228250625.0f;  // 255^4
    const float below = v_of_number(low, 1.0f), above = v_of_number(low + 1, 1.0f);
    const float chance = low == 0 ? 0 : __uint_as_float(0x3f800000 | random << 7) - (1 - 0x1p-17f);
    return static_cast<uint8_t>(__float_as_uint(floor) + (chance * (above - below) < fourth * fourth - below));
  }
  // 0 where there is nothing to take a share of.
  static __device__ __forceinline__ float inverse_of(float largest) {
    return largest >= 0x1p-126f ? near_inverse(largest) : 0;
  }
};

// Up to eight elements; where they are all there, in one access.
template <bool kAll, class T>
__device__ __forceinline__ Pack<T, kLaneElements> load_some(const T* from, int count) {
  if constexpr (kAll) {
    return Pack<T, kLaneElements>::load(from);
  } else {
    Pack<T, kLaneElements> pack{};
    for (int i = 0; i < count; ++i) pack.element[i] = from[i];
    return pack;
  }
}
template <bool kAll, class T>
__device__ __forceinline__ void store_some(const Pack<T, kLaneElements>& pack, T* to, int count) {
  if constexpr (kAll) {
    pack.store(to);
  } else {
    for (int i = 0; i < count; ++i) to[i] = pack.element[i];
  }
}

// The same with codes, of whole blocks or of what is left of one: half a warp owns a block of 128 elements, a lane
// eight of them. 15 bytes an element with an fp32 gradient and 13 with a bf16 one, where bf16 moments take 20 and 18.
template <bool kWhole, class Weight, class Gradient>
__global__ void __launch_bounds__(kThreads)
    coded_adamw_kernel(Weight* weight, int16_t* low, uint8_t* m, uint8_t* v, float* m_scale, float* v_scale,
                       const Gradient* gradient, int64_t n, Factors f, Noise noise) {
  const int64_t at = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * kLaneElements, block = at / MomentCodes::kBlock;
  if (block * MomentCodes::kBlock >= n) return;
  const int count = kWhole ? kLaneElements : static_cast<int>(min(int64_t{kLaneElements}, max(int64_t{0}, n - at)));
  auto first = load_some<kWhole>(m + at, count), second = load_some<kWhole>(v + at, count);
  const auto g = load_some<kWhole>(gradient + at, count);
  auto high = load_some<kWhole>(weight + at, count);
  Pack<int16_t, kLaneElements> rest{};
  if constexpr (sizeof(Weight) == 2) rest = load_some<kWhole>(low + at, count);
  const float m_unit = m_scale[block] * NearCodes::unit_of_m(1.0f),
              v_unit = v_scale[block] * NearCodes::unit_of_v(1.0f);
  float mi[kLaneElements], v_roots[kLaneElements], m_most = 0, v_most = 0;
#pragma unroll
  for (int i = 0; i < kLaneElements; ++i) {
    mi[i] = NearCodes::m_of_code(first.element[i], m_unit);
    float master;
    if constexpr (sizeof(Weight) == 2) master = join(high.element[i], rest.element[i]);
    else master = high.element[i];
    f.update_nearly(master, mi[i], v_roots[i], NearCodes::v_of_code(second.element[i], v_unit), g[i]);
    if constexpr (sizeof(Weight) == 2) split(high.element[i], rest.element[i], master);
    else high.element[i] = master;
    m_most = __uint_as_float(max(__float_as_uint(m_most), __float_as_uint(fabsf(mi[i]))));
    v_most = __uint_as_float(max(__float_as_uint(v_most), __float_as_uint(v_roots[i])));
  }
  const float m_largest = block_max(m_most), v_largest = block_max(v_most);
  const float m_inverse = NearCodes::inverse_of(m_largest), v_inverse = NearCodes::inverse_of(v_largest);
  const auto random = noise.of_eight(noise.first + at);
#pragma unroll
  for (int i = 0; i < kLaneElements; ++i) {
    first.element[i] = NearCodes::code_of_m(mi[i], m_inverse);
    second.element[i] = NearCodes::code_of_v(v_roots[i], v_inverse, MomentNoise::bits_of(random, i));
  }
  store_some<kWhole>(high, weight + at, count);
  if constexpr (sizeof(Weight) == 2) store_some<kWhole>(rest, low + at, count);
  store_some<kWhole>(first, m + at, count);
  store_some<kWhole>(second, v + at, count);
  if (at % MomentCodes::kBlock == 0) m_scale[block] = m_largest, v_scale[block] = v_largest;
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
                           .inverse_root_correction2 = static_cast<float>(1 / std::sqrt(correction2)),
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
    const auto run = [&]<bool kWhole>(int64_t begin, int64_t end) {
      if (begin == end) return;
      const int64_t block = begin / MomentCodes::kBlock;
      coded_adamw_kernel<kWhole, Weight, Gradient>
          <<<ceil_div(end - begin, kThreads * kLaneElements), kThreads, 0, stream_of(ctx)>>>(
              pointer<Weight>(state.weight) + begin,
              state.low.defined() ? pointer<int16_t>(state.low) + begin : nullptr, pointer<uint8_t>(state.m) + begin,
              pointer<uint8_t>(state.v) + begin, pointer<float>(state.m_scale) + block,
              pointer<float>(state.v_scale) + block, pointer<Gradient>(gradient) + begin, end - begin, factors,
              Noise{{step.stream, static_cast<uint64_t>(step.step)}, step.first + begin});
      check_launch("adamw_update");
    };
    const int64_t whole = n - n % MomentCodes::kBlock;
    run.template operator()<true>(0, whole);
    run.template operator()<false>(whole, n);
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
