#include <cmath>

#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/split_weights.h"
#include "kernels/muon_passes.h"

namespace braid::cpu {
namespace {

// Calls body(row of the matrix, where that row begins in (G, P, C)).
template <class Body>
void for_each_row(const Shape& whole, MuonRows rows, Body&& body) {
  const int64_t P = whole[1], C = whole[2], per_group = rows.end - rows.begin, M = whole[0] * per_group;
#pragma omp parallel for schedule(static)
  for (int64_t m = 0; m < M; ++m) body(m, (m / per_group * P + rows.begin + m % per_group) * C);
}

}  // namespace

void muon_direction(Context&, Tensor direction, Tensor momentum, const Tensor& gradient, MuonRows rows, double mu,
                    double scale) {
  dispatch_float("direction", direction, [&]<class T> {
    T *out = direction.data<T>(), *average = momentum.data<T>();
    const T *d_weight = gradient.data<T>(), beta = static_cast<T>(mu), factor = static_cast<T>(scale);
    const int64_t C = gradient.dim(2);
    for_each_row(gradient.shape(), rows, [=](int64_t m, int64_t first) {
      T *to = out + m * C, *b = average + first;
      const T* d = d_weight + first;
#pragma omp simd
      for (int64_t c = 0; c < C; ++c) {
        const T g = factor * d[c];
        b[c] = beta * b[c] + g;
        to[c] = g + beta * b[c];
      }
    });
  });
}

void muon_normalize(Context&, Tensor x, const Tensor& sum) {
  dispatch_float("x", x, [&]<class T> {
    T* data = x.data<T>();
    const T factor = static_cast<T>(1 / (std::sqrt(*sum.data<double>()) + NewtonSchulz::kEps));
    const int64_t n = x.numel();
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < n; ++i) data[i] *= factor;
  });
}

void muon_polynomial(Context&, Tensor square, const Tensor& gram) {
  dispatch_float("gram", gram, [&]<class T> {
    T* out = square.data<T>();
    const T* in = gram.data<T>();
    const T a = T(NewtonSchulz::kA), b = T(NewtonSchulz::kB), c = T(NewtonSchulz::kC);
    const int64_t m = gram.dim(0);
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < m; ++row) {
#pragma omp simd
      for (int64_t i = row * m; i < (row + 1) * m; ++i) out[i] = b * in[i] + c * out[i];
      out[row * m + row] += a;
    }
  });
}

void muon_apply(Context&, Tensor weight, Tensor low, const Tensor& direction, MuonRows rows, double rate,
                double decay) {
  const int64_t C = weight.dim(2);
  dispatch_float("direction", direction, [&]<class T> {
    const T *x = direction.data<T>(), step = static_cast<T>(rate), shrink = static_cast<T>(decay);
    for_each_row(weight.shape(), rows, [=](int64_t m, int64_t first) {
      update_masters<T>(weight, low, first, first + C, [=](T* w, int64_t begin, int64_t end) {
        const T* from = x + m * C + begin - first;
#pragma omp simd
        for (int64_t c = 0; c < end - begin; ++c) w[c] -= step * from[c] + shrink * w[c];
      });
    });
  });
}

}  // namespace braid::cpu
