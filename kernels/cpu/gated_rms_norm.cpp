#include "kernels/gated_rms_norm.h"

#include <cmath>

#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/ordered_sum.h"
#include "kernels/cpu/vector_math.h"

namespace braid::cpu {
namespace {

constexpr int64_t kTileTokens = 64;

}  // namespace

void gated_rms_norm_forward(Context&, Tensor y, Tensor rstd, const Tensor& o, const Tensor& qkvz, const Tensor& weight,
                            double eps, const GdnDims& dims) {
  const int64_t N = o.dim(0), Hv = dims.value_heads, Dv = dims.value_dim;
  dispatch_float("o", o, [&]<class T> {
    T *y_data = y.data<T>(), *rstd_data = rstd.data<T>();
    const T *o_data = o.data<T>(), *qkvz_data = qkvz.data<T>(), *w = weight.data<T>();
#pragma omp parallel for schedule(static) if (N > 1)
    for (int64_t n = 0; n < N; ++n) {
      for (int64_t j = 0; j < Hv; ++j) {
        const T *o_row = o_data + (n * Hv + j) * Dv, *z_row = qkvz_data + n * dims.qkvz_columns() + dims.z_column(j);
        T* y_row = y_data + (n * Hv + j) * Dv;
        T sum_sq = 0;
#pragma omp simd reduction(+ : sum_sq)
        for (int64_t c = 0; c < Dv; ++c) sum_sq += o_row[c] * o_row[c];
        const T r = T(1) / std::sqrt(sum_sq / T(Dv) + T(eps));
#pragma omp simd
        for (int64_t c = 0; c < Dv; ++c) y_row[c] = w[c] * o_row[c] * r * silu(z_row[c]);
        rstd_data[n * Hv + j] = r;
      }
    }
  });
}

void gated_rms_norm_backward(Context& ctx, Tensor d_o, Tensor d_qkvz, Tensor d_weight, const Tensor& d_y,
                             const Tensor& o, const Tensor& rstd, const Tensor& qkvz, const Tensor& weight,
                             const GdnDims& dims) {
  const int64_t N = o.dim(0), Hv = dims.value_heads, Dv = dims.value_dim;
  dispatch_float("o", o, [&]<class T> {
    T *d_o_data = d_o.data<T>(), *d_qkvz_data = d_qkvz.data<T>();
    const T *d_y_data = d_y.data<T>(), *o_data = o.data<T>(), *rstd_data = rstd.data<T>();
    const T *qkvz_data = qkvz.data<T>(), *weight_data = weight.data<T>();
    sum_rows_in_order(ctx, d_weight.data<T>(), Dv, N, kTileTokens, [&](T* d_weight_tile, int64_t begin, int64_t end) {
      const T* w = weight_data;  // captured pointers keep the loops below from vectorising
      for (int64_t n = begin; n < end; ++n) {
        for (int64_t j = 0; j < Hv; ++j) {
          const int64_t row = (n * Hv + j) * Dv, z = n * dims.qkvz_columns() + dims.z_column(j);
          const T *d_y_row = d_y_data + row, *o_row = o_data + row, *z_row = qkvz_data + z;
          T *d_o_row = d_o_data + row, *d_z_row = d_qkvz_data + z;
          const T r = rstd_data[n * Hv + j];
          T dot = 0;  // of the normalised row and its gradient
#pragma omp simd reduction(+ : dot)
          for (int64_t c = 0; c < Dv; ++c) {
            const T normalised = o_row[c] * r, s = sigmoid(z_row[c]), gate = z_row[c] * s;
            const T d_scaled = d_y_row[c] * gate, d_normalised = d_scaled * w[c];
            d_z_row[c] = d_y_row[c] * w[c] * normalised * (s + gate * (1 - s));
            d_weight_tile[c] += d_scaled * normalised;
            dot += d_normalised * normalised;
            d_o_row[c] = d_normalised;
          }
          const T mean = dot / T(Dv);
#pragma omp simd
          for (int64_t c = 0; c < Dv; ++c) d_o_row[c] = r * (d_o_row[c] - o_row[c] * r * mean);
        }
      }
    });
  });
}

}  // namespace braid::cpu
