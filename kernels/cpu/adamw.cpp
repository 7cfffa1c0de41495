#include "kernels/adamw.h"

#include <algorithm>
#include <cmath>

#include "kernels/core/moment_codes.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/split_weights.h"

namespace braid::cpu {
namespace {

constexpr int64_t kTile = 1 << 14;  // elements of a task
constexpr int64_t kBlock = MomentCodes::kBlock;

// Of an update; formed in double: in fp32, 1 - beta^step has lost most of its digits when beta is close to 1.
template <class T>
struct Factors {
  T beta1, one_minus_beta1, beta2, one_minus_beta2, rate, inverse_correction2, eps, decay, scale;

  explicit Factors(const AdamWStep& step) {
    const double correction1 = 1 - std::pow(step.beta1, static_cast<double>(step.step));
    const double correction2 = 1 - std::pow(step.beta2, static_cast<double>(step.step));
    beta1 = static_cast<T>(step.beta1), one_minus_beta1 = static_cast<T>(1 - step.beta1);
    beta2 = static_cast<T>(step.beta2), one_minus_beta2 = static_cast<T>(1 - step.beta2);
    rate = static_cast<T>(step.lr / correction1), inverse_correction2 = static_cast<T>(1 / correction2);
    eps = static_cast<T>(step.eps), decay = static_cast<T>(step.lr * step.weight_decay);
    scale = static_cast<T>(step.gradient_scale);
  }

  void update(T* w, T* first, T* second, const T* g, int64_t count) const {
    const Factors f = *this;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      const T gi = f.scale * g[i];
      const T mi = f.beta1 * first[i] + f.one_minus_beta1 * gi;
      const T vi = f.beta2 * second[i] + f.one_minus_beta2 * gi * gi;
      first[i] = mi;
      second[i] = vi;
      w[i] -= f.rate * mi / (std::sqrt(vi * f.inverse_correction2) + f.eps) + f.decay * w[i];
    }
  }
};

// The largest, or NaN if one is.
template <class T>
T largest(const T* x, int64_t count) {
  T most = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (std::isnan(x[i])) return x[i];
    most = std::max(most, std::fabs(x[i]));
  }
  return most;
}

// A block of at most kBlock moments, whose first is element `first` of its tensor.
template <class T>
struct CodedBlock {
  T m[kBlock], v[kBlock];

  void load(const uint8_t* m_codes, const uint8_t* v_codes, T m_scale, T v_scale, int64_t count) {
    const T m_unit = MomentCodes::unit_of_m(m_scale), v_unit = MomentCodes::unit_of_v(v_scale);
    for (int64_t i = 0; i < count; ++i) {
      m[i] = MomentCodes::m_of(m_codes[i], m_unit);
      v[i] = MomentCodes::v_of(v_codes[i], v_unit);
    }
  }
  void store(uint8_t* m_codes, uint8_t* v_codes, T& m_scale, T& v_scale, int64_t count, const MomentNoise& noise,
             int64_t first) const {
    m_scale = largest(m, count), v_scale = std::sqrt(largest(v, count));
    const T v_unit = MomentCodes::unit_of_v(v_scale);
    const auto share = [](T x, T scale) { return scale > 0 ? std::sqrt(std::sqrt(x / scale)) : T(0); };
    for (int64_t i = 0; i < count; i += 8) {
      const auto random = noise.of_eight(first + i);
      for (int64_t k = i; k < std::min(i + 8, count); ++k) {
        m_codes[k] = MomentCodes::code_of_m(m[k], share(std::fabs(m[k]), m_scale));
        v_codes[k] = MomentCodes::code_of_v(v[k], share(std::sqrt(v[k]), v_scale), v_unit,
                                            MomentNoise::bits_of(random, static_cast<int>(k - i)));
      }
    }
  }
};

}  // namespace

void adamw_update(Context&, AdamWState state, const Tensor& gradient, const AdamWStep& step) {
  dispatch_float("gradient", gradient, [&]<class T> {
    const T* g = gradient.data<T>();
    const int64_t n = state.weight.numel();
    const Factors<T> factors(step);
    const auto update_all = [&](const auto& update) {
#pragma omp parallel for schedule(static)
      for (int64_t begin = 0; begin < n; begin += kTile)
        update_masters<T>(state.weight, state.low, begin, std::min(n, begin + kTile), update);
    };
    if (state.m.dtype() != DType::kU8) {
      T *first = state.m.data<T>(), *second = state.v.data<T>();
      return update_all([=](T* masters, int64_t begin, int64_t end) {
        factors.update(masters, first + begin, second + begin, g + begin, end - begin);
      });
    }
    uint8_t *first = state.m.data<uint8_t>(), *second = state.v.data<uint8_t>();
    T *first_scale = state.m_scale.data<T>(), *second_scale = state.v_scale.data<T>();
    const MomentNoise noise = {step.stream, static_cast<uint64_t>(step.step)};
    update_all([=](T* masters, int64_t begin, int64_t end) {
      for (int64_t at = begin; at < end; at += kBlock) {
        const int64_t count = std::min(kBlock, end - at);
        T &m_scale = first_scale[at / kBlock], &v_scale = second_scale[at / kBlock];
        CodedBlock<T> block;
        block.load(first + at, second + at, m_scale, v_scale, count);
        factors.update(masters + (at - begin), block.m, block.v, g + at, count);
        block.store(first + at, second + at, m_scale, v_scale, count, noise, step.first + at);
      }
    });
  });
}

}  // namespace braid::cpu
