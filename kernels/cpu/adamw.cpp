#include "kernels/adamw.h"

#include <cmath>

#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/split_weights.h"

namespace braid::cpu {
namespace {

constexpr int64_t kTile = 1 << 14;  // elements of a task

}  // namespace

void adamw_update(Context&, AdamWState state, const Tensor& gradient, const AdamWStep& step) {
  dispatch_float("gradient", gradient, [&]<class T> {
    T *first = state.m.data<T>(), *second = state.v.data<T>();
    const T* g = gradient.data<T>();
    const int64_t n = state.weight.numel();
    // Formed in double: in fp32, 1 - beta^step has lost most of its digits when beta is close to 1.
    const double correction1 = 1 - std::pow(step.beta1, static_cast<double>(step.step));
    const double correction2 = 1 - std::pow(step.beta2, static_cast<double>(step.step));
    const T beta1 = static_cast<T>(step.beta1), one_minus_beta1 = static_cast<T>(1 - step.beta1);
    const T beta2 = static_cast<T>(step.beta2), one_minus_beta2 = static_cast<T>(1 - step.beta2);
    const T rate = static_cast<T>(step.lr / correction1), inverse_correction2 = static_cast<T>(1 / correction2);
    const T eps = static_cast<T>(step.eps), decay = static_cast<T>(step.lr * step.weight_decay);
    const T scale = static_cast<T>(step.gradient_scale);
    const auto update = [=](T* masters, int64_t begin, int64_t end) {
      T* w = masters - begin;
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) {
        const T gi = scale * g[i];
        const T mi = beta1 * first[i] + one_minus_beta1 * gi;
        const T vi = beta2 * second[i] + one_minus_beta2 * gi * gi;
        first[i] = mi;
        second[i] = vi;
        w[i] -= rate * mi / (std::sqrt(vi * inverse_correction2) + eps) + decay * w[i];
      }
    };
#pragma omp parallel for schedule(static)
    for (int64_t begin = 0; begin < n; begin += kTile)
      update_masters<T>(state.weight, state.low, begin, std::min(n, begin + kTile), update);
  });
}

}  // namespace braid::cpu
