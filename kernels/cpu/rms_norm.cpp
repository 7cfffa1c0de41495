#include <cmath>

#include "kernels/core/context.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/ordered_sum.h"

namespace braid::cpu {
namespace {

constexpr int64_t kTileRows = 64;

// Functions of their own: GCC 12 turns simd loops over pointers that a lambda captured into gathers.
template <class T>
T squares(const T* x, int64_t n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t c = 0; c < n; ++c) sum += x[c] * x[c];
  return sum;
}
template <class T>
T scaled_dot(const T* d_y, const T* x, const T* weight, int64_t n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t c = 0; c < n; ++c) sum += d_y[c] * (1 + weight[c]) * x[c];
  return sum;
}

template <class T>
T normalize_row(T* y, const T* x, const T* weight, int64_t C, double eps) {
  const T sum_sq =
      static_cast<T>(sum_in_blocks(C, [=](int64_t begin, int64_t end) { return squares(x + begin, end - begin); }));
  const T r = T(1) / std::sqrt(sum_sq / T(C) + T(eps));
#pragma omp simd
  for (int64_t c = 0; c < C; ++c) y[c] = x[c] * r * (1 + weight[c]);
  return r;
}

// Gradient of one row: d_x [+]=, d_weight +=.
template <class T, bool kAddToInput>
void row_backward(T* d_x, T* d_weight, const T* d_y, const T* x, const T* weight, T rstd, int64_t C) {
  const T dot = static_cast<T>(sum_in_blocks(
      C, [=](int64_t begin, int64_t end) { return scaled_dot(d_y + begin, x + begin, weight + begin, end - begin); }));
  const T along_x = rstd * rstd * rstd * dot / T(C);
#pragma omp simd
  for (int64_t c = 0; c < C; ++c) {
    const T gradient = rstd * d_y[c] * (1 + weight[c]) - along_x * x[c];
    d_weight[c] += d_y[c] * x[c] * rstd;
    d_x[c] = kAddToInput ? d_x[c] + gradient : gradient;
  }
}

template <class T, bool kAddToInput>
void backward(Context& ctx, T* d_x, T* d_weight, const T* d_y, const T* x, const T* weight, const T* rstd, int64_t N,
              int64_t C) {
  sum_rows_in_order(ctx, d_weight, C, N, kTileRows, [=](T* d_weight_tile, int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n)
      row_backward<T, kAddToInput>(d_x + n * C, d_weight_tile, d_y + n * C, x + n * C, weight, rstd[n], C);
  });
}

}  // namespace

void rms_norm_forward(Context&, Tensor y, Tensor rstd, const Tensor& x, const Tensor& weight, double eps) {
  const int64_t N = x.dim(0), C = x.dim(1);
  dispatch_float("x", x, [&]<class T> {
    T *y_data = y.data<T>(), *rstd_data = rstd.data<T>();
    const T *x_data = x.data<T>(), *weight_data = weight.data<T>();
#pragma omp parallel for schedule(static) if (N > 1)
    for (int64_t n = 0; n < N; ++n) rstd_data[n] = normalize_row(y_data + n * C, x_data + n * C, weight_data, C, eps);
  });
}

void rms_norm_backward(Context& ctx, Tensor d_x, Tensor d_weight, const Tensor& d_y, const Tensor& x,
                       const Tensor& weight, const Tensor& rstd) {
  dispatch_float("x", x, [&]<class T> {
    backward<T, false>(ctx, d_x.data<T>(), d_weight.data<T>(), d_y.data<T>(), x.data<T>(), weight.data<T>(),
                       rstd.data<T>(), x.dim(0), x.dim(1));
  });
}

void add_rms_norm_forward(Context&, Tensor y, Tensor sum, Tensor rstd, const Tensor& x, const Tensor& delta,
                          const Tensor& weight, double eps) {
  const int64_t N = x.dim(0), C = x.dim(1);
  dispatch_float("x", x, [&]<class T> {
    T *y_data = y.data<T>(), *sum_data = sum.data<T>(), *rstd_data = rstd.data<T>();
    const T *x_data = x.data<T>(), *delta_data = delta.data<T>(), *weight_data = weight.data<T>();
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; ++n) {
#pragma omp simd
      for (int64_t i = n * C; i < (n + 1) * C; ++i) sum_data[i] = x_data[i] + delta_data[i];
      rstd_data[n] = normalize_row(y_data + n * C, sum_data + n * C, weight_data, C, eps);
    }
  });
}

void add_rms_norm_backward(Context& ctx, Tensor d_sum, Tensor d_weight, const Tensor& d_y, const Tensor& sum,
                           const Tensor& weight, const Tensor& rstd) {
  dispatch_float("sum", sum, [&]<class T> {
    backward<T, true>(ctx, d_sum.data<T>(), d_weight.data<T>(), d_y.data<T>(), sum.data<T>(), weight.data<T>(),
                      rstd.data<T>(), sum.dim(0), sum.dim(1));
  });
}

}  // namespace braid::cpu
