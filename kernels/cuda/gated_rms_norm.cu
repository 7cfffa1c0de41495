#include "kernels/gated_rms_norm.h"

#include <numeric>

#include "kernels/cuda/ordered_sum.cuh"
#include "kernels/cuda/row_access.cuh"

// A row is one value head of one token. Rows of 128 elements, the size of the real models, are held in registers by as
// many lanes as they have vectors; rows of other sizes are read by a warp, once for every pass.
namespace braid::cuda {
namespace {

constexpr int kRowElements = 128;  // of the fast kernels
constexpr int kThreads = 256;
constexpr int kTileTokens = 28;  // of a block of the fast kernels; 32,768 are three full turns of an H100
constexpr int kWarps = 4;        // of a block of the others

// Where z lies in a row of qkvz.
struct GateColumns {
  explicit GateColumns(const GdnDims& dims)
      : row_elements(dims.qkvz_columns()),
        block(static_cast<int>(dims.block())),
        first(static_cast<int>(dims.z_column(0))),
        group(static_cast<int>(dims.group())),
        head_elements(static_cast<int>(dims.value_dim)) {}
  __device__ __forceinline__ int64_t at(int64_t token, int head) const {
    return token * row_elements + int64_t(head / group) * block + first + head % group * head_elements;
  }
  int64_t row_elements;
  int block, first, group, head_elements;
};

// Sum over a row's kLanes consecutive lanes; each of them gets it.
template <int kLanes>
__device__ __forceinline__ float row_sum(float x) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kAllLanes, x, offset);
  return x;
}

// The lanes of a row, the rows of a block and how many tokens it takes at a time.
template <class X>
struct Fast {
  using V = Vec<X>;
  static constexpr int kLanes = kRowElements / V::kSize;
  static constexpr int kRows = kThreads / kLanes;
};

// Block i owns tokens [28 i, 28 i + 28); a row of threads owns a head, and the next one when all tokens are done. Four
// tokens at a time. Reads o and z, writes y: 6 N Hv Dv bytes in bf16.
template <class X>
__global__ void __launch_bounds__(kThreads, 3)
    forward_kernel(X* y, float* rstd, const X* o, const X* qkvz, GateColumns z, const float* __restrict__ weight,
                   int64_t N, int Hv, float eps) {
  using V = typename Fast<X>::V;
  constexpr int kTokens = 4;
  const int c = threadIdx.x * V::kSize;
  const int64_t begin = int64_t(blockIdx.x) * kTileTokens, end = min(begin + kTileTokens, N);
  const auto w = Floats<V::kSize>::load(weight + c);
  for (int head = threadIdx.y; head - int(threadIdx.y) < Hv; head += Fast<X>::kRows) {
    const bool has_head = head < Hv;  // the others only take part in the sums of their warp
    for (int64_t first = begin; first < end; first += kTokens) {
      V vo[kTokens], vz[kTokens];
#pragma unroll
      for (int j = 0; j < kTokens; ++j) {
        const int64_t n = first + j;
        if (!has_head || n >= end) continue;
        vo[j] = V::load(o + (n * Hv + head) * kRowElements + c);
        vz[j] = V::load(qkvz + z.at(n, head) + c);
      }
#pragma unroll
      for (int j = 0; j < kTokens; ++j) {
        const int64_t n = first + j;
        const bool has_row = has_head && n < end;
        float sum_sq = 0;
        if (has_row) {
#pragma unroll
          for (int i = 0; i < V::kSize; ++i) sum_sq += square(vo[j][i]);
        }
        sum_sq = row_sum<Fast<X>::kLanes>(sum_sq);
        if (!has_row) continue;
        const float r = rsqrtf(sum_sq / kRowElements + eps);
        V out;
#pragma unroll
        for (int i = 0; i < V::kSize; ++i) out.set(i, w[i] * vo[j][i] * r * vz[j][i] * sigmoid(vz[j][i]));
        out.store(y + (n * Hv + head) * kRowElements + c);
        if (threadIdx.x == 0) rstd[n * Hv + head] = r;
      }
    }
  }
}

// What one element of a row gets, given the row's rstd.
struct ElementGradient {
  float d_normalised, normalised, d_z, d_weight;
};
__device__ __forceinline__ ElementGradient element_gradient(float d_y, float o, float z, float weight, float rstd) {
  const float normalised = o * rstd, s = sigmoid(z), gate = z * s, d_scaled = d_y * gate;
  return {d_scaled * weight, normalised, d_y * weight * normalised * (s + gate * (1 - s)), d_scaled * normalised};
}

// Ownership as forward, two tokens at a time; a thread keeps the sums of d_weight for its columns, the rows of threads
// add theirs in order at the end. Reads d_y, o and z, writes d_o and d_z: 10 N Hv Dv bytes in bf16.
template <class X>
__global__ void __launch_bounds__(kThreads, 3)
    backward_kernel(X* d_o, X* d_qkvz, float* partial, const X* d_y, const X* o, const float* __restrict__ rstd,
                    const X* qkvz, GateColumns z, const float* __restrict__ weight, int64_t N, int Hv) {
  using V = typename Fast<X>::V;
  using F = Floats<V::kSize>;
  constexpr int kTokens = 2;
  const int c = threadIdx.x * V::kSize;
  const int64_t begin = int64_t(blockIdx.x) * kTileTokens, end = min(begin + kTileTokens, N);
  const F w = F::load(weight + c);
  F d_weight = {};
  for (int head = threadIdx.y; head - int(threadIdx.y) < Hv; head += Fast<X>::kRows) {
    const bool has_head = head < Hv;
    for (int64_t first = begin; first < end; first += kTokens) {
      V vg[kTokens], vo[kTokens], vz[kTokens];
#pragma unroll
      for (int j = 0; j < kTokens; ++j) {
        const int64_t n = first + j;
        if (!has_head || n >= end) continue;
        vg[j] = V::load(d_y + (n * Hv + head) * kRowElements + c);
        vo[j] = V::load(o + (n * Hv + head) * kRowElements + c);
        vz[j] = V::load(qkvz + z.at(n, head) + c);
      }
#pragma unroll
      for (int j = 0; j < kTokens; ++j) {
        const int64_t n = first + j;
        const bool has_row = has_head && n < end;
        const float r = has_row ? rstd[n * Hv + head] : 0;
        F d_normalised = {};
        float dot = 0;
        if (has_row) {
          V d_z;
#pragma unroll
          for (int i = 0; i < V::kSize; ++i) {
            const ElementGradient g = element_gradient(vg[j][i], vo[j][i], vz[j][i], w[i], r);
            d_z.set(i, g.d_z);
            d_weight[i] += g.d_weight;
            d_normalised[i] = g.d_normalised;
            dot += g.d_normalised * g.normalised;
          }
          d_z.store(d_qkvz + z.at(n, head) + c);
        }
        const float mean = row_sum<Fast<X>::kLanes>(dot) / kRowElements;
        if (!has_row) continue;
        V out;
#pragma unroll
        for (int i = 0; i < V::kSize; ++i) out.set(i, r * (d_normalised[i] - vo[j][i] * r * mean));
        out.store(d_o + (n * Hv + head) * kRowElements + c);
      }
    }
  }
  __shared__ float of_rows[Fast<X>::kRows][kRowElements];
#pragma unroll
  for (int i = 0; i < V::kSize; ++i) of_rows[threadIdx.y][c + i] = d_weight[i];
  __syncthreads();
  const int column = threadIdx.y * Fast<X>::kLanes + threadIdx.x;
  if (column >= kRowElements) return;
  float sum = 0;
#pragma unroll
  for (int row = 0; row < Fast<X>::kRows; ++row) sum += of_rows[row][column];
  partial[int64_t(blockIdx.x) * kRowElements + column] = sum;
}

// A warp per row, any size.
template <class X>
__global__ void __launch_bounds__(kWarpSize* kWarps)
    forward_any_kernel(X* y, float* rstd, const X* o, const X* qkvz, GateColumns z, const float* weight, int64_t N,
                       int Hv, int Dv, float eps) {
  const int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.y;
  if (row >= N * Hv) return;
  const X *o_row = o + row * Dv, *z_row = qkvz + z.at(row / Hv, static_cast<int>(row % Hv));
  float sum_sq = 0;
  for (int c = threadIdx.x; c < Dv; c += kWarpSize) sum_sq += square(static_cast<float>(o_row[c]));
  const float r = rsqrtf(warp_sum(sum_sq) / Dv + eps);
  for (int c = threadIdx.x; c < Dv; c += kWarpSize) {
    const float gate = static_cast<float>(z_row[c]);
    y[row * Dv + c] = static_cast<X>(weight[c] * static_cast<float>(o_row[c]) * r * gate * sigmoid(gate));
  }
  if (threadIdx.x == 0) rstd[row] = r;
}

template <class X>
__global__ void __launch_bounds__(kWarpSize* kWarps)
    backward_any_kernel(X* d_o, X* d_qkvz, const X* d_y, const X* o, const float* rstd, const X* qkvz, GateColumns z,
                        const float* weight, int64_t N, int Hv, int Dv) {
  const int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.y;
  if (row >= N * Hv) return;
  const int64_t z_row = z.at(row / Hv, static_cast<int>(row % Hv));
  const X *d_y_row = d_y + row * Dv, *o_row = o + row * Dv;
  const float r = rstd[row];
  const auto gradient_at = [&](int c) {
    return element_gradient(static_cast<float>(d_y_row[c]), static_cast<float>(o_row[c]),
                            static_cast<float>(qkvz[z_row + c]), weight[c], r);
  };
  float dot = 0;
  for (int c = threadIdx.x; c < Dv; c += kWarpSize) {
    const ElementGradient g = gradient_at(c);
    dot += g.d_normalised * g.normalised;
  }
  const float mean = warp_sum(dot) / Dv;
  for (int c = threadIdx.x; c < Dv; c += kWarpSize) {
    const ElementGradient g = gradient_at(c);
    d_qkvz[z_row + c] = static_cast<X>(g.d_z);
    d_o[row * Dv + c] = static_cast<X>(r * (g.d_normalised - g.normalised * mean));
  }
}

template <class X>
struct WeightGradientTerm {  // of a row
  const X *d_y, *o, *qkvz;
  const float* rstd;
  GateColumns z;
  int Hv, Dv;
  __device__ float operator()(int64_t row, int64_t c) const {
    const int64_t z_row = z.at(row / Hv, static_cast<int>(row % Hv));
    return element_gradient(static_cast<float>(d_y[row * Dv + c]), static_cast<float>(o[row * Dv + c]),
                            static_cast<float>(qkvz[z_row + c]), 1, rstd[row])
        .d_weight;
  }
};

// Whether every row of o and z, and the weight, can be read by vectors.
template <class X>
bool is_fast(const GdnDims& dims, std::initializer_list<const void*> addresses) {
  bool fast = dims.value_dim == kRowElements;
  dispatch_width<X>(std::gcd(dims.z_column(0), std::gcd(dims.block(), dims.qkvz_columns())), addresses,
                    [&]<class V> { fast &= V::kSize > 1; });
  return fast;
}

}  // namespace

void gated_rms_norm_forward(Context& ctx, Tensor y, Tensor rstd, const Tensor& o, const Tensor& qkvz,
                            const Tensor& weight, double eps, const GdnDims& dims) {
  const int64_t N = o.dim(0);
  const int Hv = static_cast<int>(dims.value_heads), Dv = static_cast<int>(dims.value_dim);
  const GateColumns z(dims);
  dispatch_activation("o", o, [&]<class X> {
    if (is_fast<X>(dims, {y.raw(), o.raw(), qkvz.raw(), weight.raw()}))
      forward_kernel<X><<<ceil_div(N, kTileTokens), dim3(Fast<X>::kLanes, Fast<X>::kRows), 0, stream_of(ctx)>>>(
          pointer<X>(y), pointer<float>(rstd), pointer<X>(o), pointer<X>(qkvz), z, pointer<float>(weight), N, Hv,
          static_cast<float>(eps));
    else
      forward_any_kernel<X><<<ceil_div(N * Hv, kWarps), dim3(kWarpSize, kWarps), 0, stream_of(ctx)>>>(
          pointer<X>(y), pointer<float>(rstd), pointer<X>(o), pointer<X>(qkvz), z, pointer<float>(weight), N, Hv, Dv,
          static_cast<float>(eps));
    check_launch("gated_rms_norm_forward");
  });
}

void gated_rms_norm_backward(Context& ctx, Tensor d_o, Tensor d_qkvz, Tensor d_weight, const Tensor& d_y,
                             const Tensor& o, const Tensor& rstd, const Tensor& qkvz, const Tensor& weight,
                             const GdnDims& dims) {
  const int64_t N = o.dim(0);
  const int Hv = static_cast<int>(dims.value_heads), Dv = static_cast<int>(dims.value_dim);
  const GateColumns z(dims);
  dispatch_activation("o", o, [&]<class X> {
    if (is_fast<X>(dims, {d_o.raw(), d_qkvz.raw(), d_y.raw(), o.raw(), qkvz.raw(), weight.raw()})) {
      const int64_t num_tiles = ceil_div(N, kTileTokens);
      Scratch scratch(ctx);
      float* partial = scratch.array<float>(num_tiles * Dv);
      if (ctx.counts_only()) return;
      backward_kernel<X><<<num_tiles, dim3(Fast<X>::kLanes, Fast<X>::kRows), 0, stream_of(ctx)>>>(
          pointer<X>(d_o), pointer<X>(d_qkvz), partial, pointer<X>(d_y), pointer<X>(o), pointer<float>(rstd),
          pointer<X>(qkvz), z, pointer<float>(weight), N, Hv);
      check_launch("gated_rms_norm_backward");
      add_partials(ctx, pointer<float>(d_weight), partial, num_tiles, Dv);
    } else {
      add_column_sums(
          ctx, pointer<float>(d_weight), N * Hv, Dv,
          WeightGradientTerm<X>{pointer<X>(d_y), pointer<X>(o), pointer<X>(qkvz), pointer<float>(rstd), z, Hv, Dv});
      if (ctx.counts_only()) return;
      backward_any_kernel<X><<<ceil_div(N * Hv, kWarps), dim3(kWarpSize, kWarps), 0, stream_of(ctx)>>>(
          pointer<X>(d_o), pointer<X>(d_qkvz), pointer<X>(d_y), pointer<X>(o), pointer<float>(rstd), pointer<X>(qkvz),
          z, pointer<float>(weight), N, Hv, Dv);
      check_launch("gated_rms_norm_backward");
    }
  });
}

Implementation gated_rms_norm_implementation(Context&, DType activation, const GdnDims& dims) {
  const bool fast = activation == DType::kBF16 ? is_fast<bf16>(dims, {}) : is_fast<float>(dims, {});
  if (fast) return {concat("16 bytes at a time, heads of ", dims.value_dim), ""};
  return {"general kernels", concat("the fast kernels take heads of ", kRowElements, ", not of ", dims.value_dim)};
}

}  // namespace braid::cuda
