#include "kernels/rms_norm.h"

#include "kernels/core/memory.h"
#include "kernels/cuda/ordered_sum.cuh"
#include "kernels/cuda/rms_norm.cuh"
#include "kernels/cuda/row_access.cuh"

// Rows of up to 256 vectors (2048 bf16 elements) are read once and held in registers. A warp reads longer or unaligned
// ones again for every pass, mostly from the caches.
namespace braid::cuda {
namespace {

constexpr int kRowVectors = 256;  // that fit registers

// Of a block with a warp per row.
constexpr int kWarps = 4;
constexpr int kSlots = kRowVectors / kWarpSize;  // vectors that a lane holds

// Of a block with a thread per vector of columns.
constexpr int kTileRows = 32;  // whose terms of d_weight it sums
constexpr int kRowsAtOnce = 2;

// First element of vector `slot` of a lane.
template <class V>
__device__ __forceinline__ int column_of(int slot) {
  return (slot * kWarpSize + threadIdx.x) * V::kSize;
}

template <class V, class X>
__device__ __forceinline__ void load_row(V (&row)[kSlots], const X* from, int C) {
#pragma unroll
  for (int s = 0; s < kSlots; ++s)
    if (column_of<V>(s) < C) row[s] = V::load(from + column_of<V>(s));
}

// A warp per row. Reads x (and delta), writes y (and sum): 4NC or 8NC bytes in bf16.
template <class X, bool kAdd>
__global__ void __launch_bounds__(kWarpSize* kWarps)
    forward_kernel(X* y, int64_t y_stride, X* sum, float* rstd, const X* x, const X* delta,
                   const float* __restrict__ weight, int64_t N, int C, float eps) {
  using V = Vec<X>;
  const int64_t n = int64_t(blockIdx.x) * kWarps + threadIdx.y;
  if (n >= N) return;
  V row[kSlots];
  load_row(row, x + n * C, C);
  if constexpr (kAdd) {
    V other[kSlots];
    load_row(other, delta + n * C, C);
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      if (column_of<V>(s) >= C) continue;
      V both;
#pragma unroll
      for (int i = 0; i < V::kSize; ++i) both.set(i, row[s][i] + other[s][i]);
      both.store(sum + n * C + column_of<V>(s));
      row[s] = both;
    }
  }
  float sum_sq = 0;
#pragma unroll
  for (int s = 0; s < kSlots; ++s) {
    if (column_of<V>(s) >= C) continue;
#pragma unroll
    for (int i = 0; i < V::kSize; ++i) sum_sq += square(row[s][i]);
  }
  const float r = rsqrtf(warp_sum(sum_sq) / C + eps);
#pragma unroll
  for (int s = 0; s < kSlots; ++s) {
    if (column_of<V>(s) >= C) continue;
    const auto w = Floats<V::kSize>::load(weight + column_of<V>(s));
    V out;
#pragma unroll
    for (int i = 0; i < V::kSize; ++i) out.set(i, row[s][i] * r * (1 + w[i]));
    out.store(y + n * y_stride + column_of<V>(s));
  }
  if (threadIdx.x == 0) rstd[n] = r;
}

template <class V, class X, bool kAdd>
__global__ void __launch_bounds__(kWarpSize* kWarps)
    forward_any_kernel(X* y, int64_t y_stride, X* sum, float* rstd, const X* x, const X* delta,
                       const float* __restrict__ weight, int64_t N, int64_t C, float eps) {
  const int64_t n = int64_t(blockIdx.x) * kWarps + threadIdx.y;
  if (n >= N) return;
  const int64_t first = int64_t(threadIdx.x) * V::kSize, step = int64_t(kWarpSize) * V::kSize;
  float sum_sq = 0;
  for (int64_t c = first; c < C; c += step) {
    V v = V::load(x + n * C + c);
    if constexpr (kAdd) {
      const V other = V::load(delta + n * C + c);
      for (int i = 0; i < V::kSize; ++i) v.set(i, v[i] + other[i]);
      v.store(sum + n * C + c);
    }
    for (int i = 0; i < V::kSize; ++i) sum_sq += square(v[i]);
  }
  const float r = rsqrtf(warp_sum(sum_sq) / C + eps);
  const X* row = (kAdd ? sum : x) + n * C;
  for (int64_t c = first; c < C; c += step) {
    V v = V::load(row + c);
    const auto w = Floats<V::kSize>::load(weight + c);
    for (int i = 0; i < V::kSize; ++i) v.set(i, v[i] * r * (1 + w[i]));
    v.store(y + n * y_stride + c);
  }
  if (threadIdx.x == 0) rstd[n] = r;
}

// A block owns 32 rows and takes two at a time, a thread one vector of columns: it keeps their weight and the sum of
// their d_weight. Reads d_y and x (and d_x), writes d_x: 6NC or 8NC bytes in bf16, and NC / 8 of partial sums.
template <class X, bool kAdd>
__global__ void __launch_bounds__(kRowVectors, 4)
    backward_kernel(X* d_x, float* partial, const X* d_y, int64_t d_y_stride, const X* x,
                    const float* __restrict__ weight, const float* __restrict__ rstd, int64_t N, int C) {
  using V = Vec<X>;
  constexpr int kMaxWarps = kRowVectors / kWarpSize;
  __shared__ float dot_of_warp[2][kRowsAtOnce][kMaxWarps];  // 0 where the block has no such warp
  for (int i = threadIdx.x; i < 2 * kRowsAtOnce * kMaxWarps; i += blockDim.x) (&dot_of_warp[0][0][0])[i] = 0;
  __syncthreads();
  const int c = threadIdx.x * V::kSize;
  Floats<V::kSize> scale = {}, d_weight = {};
  if (c < C) {
    scale = Floats<V::kSize>::load(weight + c);
#pragma unroll
    for (int i = 0; i < V::kSize; ++i) scale[i] += 1;
  }
  const int64_t begin = int64_t(blockIdx.x) * kTileRows;
  const int num_rows = static_cast<int>(min(int64_t(kTileRows), N - begin)), d_y_step = static_cast<int>(d_y_stride);
  const float per_column = 1.0f / C;
  d_y += begin * d_y_stride + c;
  x += begin * C + c;
  d_x += begin * C + c;
  rstd += begin;
  int buffer = 0;  // two of them, so that one barrier per turn is enough
  for (int first = 0; first < num_rows; first += kRowsAtOnce, buffer ^= 1) {
    V g[kRowsAtOnce], row[kRowsAtOnce], stream[kRowsAtOnce];
    float r[kRowsAtOnce];
#pragma unroll
    for (int j = 0; j < kRowsAtOnce; ++j) {
      const int n = first + j;
      if (c >= C || n >= num_rows) continue;
      g[j] = V::load(d_y + n * d_y_step);
      row[j] = V::load(x + n * C);
      if constexpr (kAdd) stream[j] = V::load(d_x + n * C);
      r[j] = rstd[n];
    }
#pragma unroll
    for (int j = 0; j < kRowsAtOnce; ++j) {
      float dot = 0;
      if (c < C && first + j < num_rows) {
#pragma unroll
        for (int i = 0; i < V::kSize; ++i) dot += g[j][i] * row[j][i] * scale[i];
      }
      dot = warp_sum(dot);
      if (threadIdx.x % kWarpSize == 0) dot_of_warp[buffer][j][threadIdx.x / kWarpSize] = dot;
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kRowsAtOnce; ++j) {
      const int n = first + j;
      if (c >= C || n >= num_rows) continue;
      float dot = 0;
#pragma unroll
      for (int w = 0; w < kMaxWarps; ++w) dot += dot_of_warp[buffer][j][w];
      const float along_x = r[j] * r[j] * r[j] * dot * per_column;
      V out;
#pragma unroll
      for (int i = 0; i < V::kSize; ++i) {
        const float gradient = r[j] * g[j][i] * scale[i] - along_x * row[j][i];
        d_weight[i] += g[j][i] * row[j][i] * r[j];
        out.set(i, kAdd ? stream[j][i] + gradient : gradient);
      }
      out.store(d_x + n * C);
    }
  }
  if (c < C) d_weight.store(partial + int64_t(blockIdx.x) * C + c);
}

template <class V, class X, bool kAdd>
__global__ void __launch_bounds__(kWarpSize* kWarps)
    backward_any_kernel(X* d_x, const X* d_y, int64_t d_y_stride, const X* x, const float* __restrict__ weight,
                        const float* __restrict__ rstd, int64_t N, int64_t C) {
  const int64_t n = int64_t(blockIdx.x) * kWarps + threadIdx.y;
  if (n >= N) return;
  const int64_t first = int64_t(threadIdx.x) * V::kSize, step = int64_t(kWarpSize) * V::kSize;
  const float r = rstd[n];
  float dot = 0;
  for (int64_t c = first; c < C; c += step) {
    const V g = V::load(d_y + n * d_y_stride + c), row = V::load(x + n * C + c);
    const auto w = Floats<V::kSize>::load(weight + c);
    for (int i = 0; i < V::kSize; ++i) dot += g[i] * (1 + w[i]) * row[i];
  }
  const float along_x = r * r * r * warp_sum(dot) / C;
  for (int64_t c = first; c < C; c += step) {
    const V g = V::load(d_y + n * d_y_stride + c), row = V::load(x + n * C + c);
    const auto w = Floats<V::kSize>::load(weight + c);
    V out;
    if constexpr (kAdd) out = V::load(d_x + n * C + c);
    for (int i = 0; i < V::kSize; ++i) {
      const float gradient = r * g[i] * (1 + w[i]) - along_x * row[i];
      out.set(i, kAdd ? out[i] + gradient : gradient);
    }
    out.store(d_x + n * C + c);
  }
}

template <class X>
struct WeightGradientTerm {
  const X* d_y;
  int64_t d_y_stride;
  const X* x;
  const float* rstd;
  int64_t C;
  __device__ float operator()(int64_t n, int64_t c) const {
    return static_cast<float>(d_y[n * d_y_stride + c]) * static_cast<float>(x[n * C + c]) * rstd[n];
  }
};

template <class X, bool kAdd>
void launch_forward(Context& ctx, X* y, int64_t y_stride, X* sum, float* rstd, const X* x, const X* delta,
                    const float* weight, int64_t N, int64_t C, double eps) {
  if (ctx.counts_only()) return;
  dispatch_width<X>(C, {y, y + y_stride, sum, x, delta, weight}, [&]<class V> {
    const dim3 block(kWarpSize, kWarps);
    const int64_t grid = ceil_div(N, kWarps);
    if (V::kSize > 1 && C <= kRowVectors * V::kSize)
      forward_kernel<X, kAdd><<<grid, block, 0, stream_of(ctx)>>>(y, y_stride, sum, rstd, x, delta, weight, N,
                                                                  static_cast<int>(C), static_cast<float>(eps));
    else
      forward_any_kernel<V, X, kAdd>
          <<<grid, block, 0, stream_of(ctx)>>>(y, y_stride, sum, rstd, x, delta, weight, N, C, static_cast<float>(eps));
    check_launch("rms_norm_forward");
  });
}

template <class X, bool kAdd>
void launch_backward(Context& ctx, X* d_x, float* d_weight, const X* d_y, int64_t d_y_stride, const X* x,
                     const float* weight, const float* rstd, int64_t N, int64_t C) {
  dispatch_width<X>(C, {d_x, d_y, d_y + d_y_stride, x, weight}, [&]<class V> {
    if (V::kSize > 1 && C <= kRowVectors * V::kSize) {
      const int64_t num_tiles = ceil_div(N, kTileRows);
      Scratch scratch(ctx);
      float* partial = scratch.array<float>(num_tiles * C);
      if (ctx.counts_only()) return;
      const int64_t threads = round_up(ceil_div(C, V::kSize), kWarpSize);
      backward_kernel<X, kAdd><<<num_tiles, threads, 0, stream_of(ctx)>>>(d_x, partial, d_y, d_y_stride, x, weight,
                                                                          rstd, N, static_cast<int>(C));
      check_launch("rms_norm_backward");
      add_partials(ctx, d_weight, partial, num_tiles, C);
    } else {
      add_column_sums(ctx, d_weight, N, C, WeightGradientTerm<X>{d_y, d_y_stride, x, rstd, C});
      if (ctx.counts_only()) return;
      backward_any_kernel<V, X, kAdd><<<ceil_div(N, kWarps), dim3(kWarpSize, kWarps), 0, stream_of(ctx)>>>(
          d_x, d_y, d_y_stride, x, weight, rstd, N, C);
      check_launch("rms_norm_backward");
    }
  });
}

}  // namespace

void norm_forward(Context& ctx, Tensor& y, Columns y_columns, Tensor& rstd, const Tensor& x, const Tensor& weight,
                  double eps) {
  dispatch_activation("x", x, [&]<class X> {
    launch_forward<X, false>(ctx, pointer<X>(y) + y_columns.first, y_columns.row_elements, nullptr,
                             pointer<float>(rstd), pointer<X>(x), nullptr, pointer<float>(weight), x.dim(0), x.dim(1),
                             eps);
  });
}

void norm_backward(Context& ctx, Tensor& d_x, InputGradient mode, Tensor& d_weight, const Tensor& d_y,
                   Columns d_y_columns, const Tensor& x, const Tensor& weight, const Tensor& rstd) {
  dispatch_activation("x", x, [&]<class X> {
    const auto launch = mode == InputGradient::kAdd ? launch_backward<X, true> : launch_backward<X, false>;
    launch(ctx, pointer<X>(d_x), pointer<float>(d_weight), pointer<X>(d_y) + d_y_columns.first,
           d_y_columns.row_elements, pointer<X>(x), pointer<float>(weight), pointer<float>(rstd), x.dim(0), x.dim(1));
  });
}

void rms_norm_forward(Context& ctx, Tensor y, Tensor rstd, const Tensor& x, const Tensor& weight, double eps) {
  norm_forward(ctx, y, {0, x.dim(1)}, rstd, x, weight, eps);
}

void rms_norm_backward(Context& ctx, Tensor d_x, Tensor d_weight, const Tensor& d_y, const Tensor& x,
                       const Tensor& weight, const Tensor& rstd) {
  norm_backward(ctx, d_x, InputGradient::kOverwrite, d_weight, d_y, {0, x.dim(1)}, x, weight, rstd);
}

void add_rms_norm_forward(Context& ctx, Tensor y, Tensor sum, Tensor rstd, const Tensor& x, const Tensor& delta,
                          const Tensor& weight, double eps) {
  const int64_t N = x.dim(0), C = x.dim(1);
  dispatch_activation("x", x, [&]<class X> {
    launch_forward<X, true>(ctx, pointer<X>(y), C, pointer<X>(sum), pointer<float>(rstd), pointer<X>(x),
                            pointer<X>(delta), pointer<float>(weight), N, C, eps);
  });
}

void add_rms_norm_backward(Context& ctx, Tensor d_sum, Tensor d_weight, const Tensor& d_y, const Tensor& sum,
                           const Tensor& weight, const Tensor& rstd) {
  norm_backward(ctx, d_sum, InputGradient::kAdd, d_weight, d_y, {0, sum.dim(1)}, sum, weight, rstd);
}

}  // namespace braid::cuda
