#include "kernels/attention_inputs.h"

#include <algorithm>

#include "kernels/cuda/ordered_sum.cuh"
#include "kernels/cuda/row_access.cuh"

// A "row" here is one head of one token. Queries lie in rows of twice their width, beside the gates, if there are any.
namespace braid::cuda {
namespace {

// (cos, sin) of the angle of every position and every pair of dimensions.
struct Rotations {
  const float2* cos_sin;    // (positions, pairs)
  const int32_t* position;  // (N)
  int pairs;

  __device__ __forceinline__ const float2* of(int64_t token) const {
    return cos_sin + position[token] * int64_t(pairs);
  }
};

// A thread per position and pair. Exponent, power, reciprocal and angle are each rounded to fp32, as torch does; the
// power is formed in fp64, so that its rounding is the exact one.
__global__ void rotations_kernel(float2* cos_sin, int64_t count, int pairs, float theta, float rotary_dim,
                                 RotaryFrequencies<float> frequencies, float scale) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const float exponent = __fdiv_rn(float(2 * (i % pairs)), rotary_dim);
  const float inv_freq = frequencies.of(i % pairs, static_cast<float>(pow(double(theta), double(exponent))));
  const float angle = __fmul_rn(float(i / pairs), inv_freq);
  float sine, cosine;
  sincosf(angle, &sine, &cosine);
  cos_sin[i] = make_float2(cosine * scale, sine * scale);
}

// Heads of all tokens: `num` per token, `stride` elements from one to the next.
template <class T>
struct Heads {
  T* data;
  int num;
  int64_t stride;

  __device__ __forceinline__ T* row(int64_t token, int head) const { return data + (token * num + head) * stride; }
};

template <class X>
struct ForwardSide {  // queries or keys
  Heads<X> y;
  Heads<const X> x;
  float* rstd;
  const float* weight;
};

template <class X>
struct BackwardSide {
  Heads<X> d_x;
  Heads<const X> d_y, x;
  const float *rstd, *weight;
  float* partial;  // (token tiles, Dh)
};

constexpr int kWarps = 6;       // of a block, which takes the heads of a token in turns
constexpr int kRowsAtOnce = 3;  // whose loads a warp has in flight
constexpr int kBackwardWarps = 8;
constexpr int kTileTokens = 12;  // of a block of the backward kernel; 32,768 are seven full turns of an H100

// The rotation of what a warp holds of a row: 8 (fp32: 4) elements per lane, of which the first 2 * pairs rotate. Pairs
// are whole lanes apart.
template <int kSize>
struct Rotation {
  Floats<2 * kSize> cos_sin;  // the sine with the sign that it has for this lane
  int partner;
  bool rotates;

  __device__ __forceinline__ Rotation(const float2* of_token, int pairs, float direction) {
    const int lane = threadIdx.x, lanes = pairs / kSize;
    const bool is_first = lane < lanes;
    rotates = lane < 2 * lanes;
    partner = !rotates ? lane : is_first ? lane + lanes : lane - lanes;
    if (!rotates) return;
    const float2* const from = of_token + (is_first ? lane : lane - lanes) * kSize;
    cos_sin = Floats<2 * kSize>::load(reinterpret_cast<const float*>(from));
    const float sign = is_first ? -direction : direction;
#pragma unroll
    for (int i = 0; i < kSize; ++i) cos_sin[2 * i + 1] *= sign;
  }
  __device__ __forceinline__ void operator()(float (&value)[kSize]) const {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      const float other = __shfl_sync(kAllLanes, value[i], partner);
      if (rotates) value[i] = value[i] * cos_sin[2 * i] + other * cos_sin[2 * i + 1];
    }
  }
};

// A row of kSlots * 32 vectors, a warp's; the first slot holds all that rotates.
template <class X, int kSlots>
struct Row {
  using V = Vec<X>;
  static constexpr int kDh = kSlots * kWarpSize * V::kSize;
  V slot[kSlots];

  static __device__ __forceinline__ int column(int s) { return (s * kWarpSize + threadIdx.x) * V::kSize; }
  __device__ __forceinline__ void load(const X* from) {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) slot[s] = V::load(from + column(s));
  }
  __device__ __forceinline__ void store(X* to) const {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) slot[s].store(to + column(s));
  }
};

template <class X, int kSlots>
__device__ __forceinline__ void forward_row(const ForwardSide<X>& side, const Row<X, kSlots>& row, int64_t token,
                                            int head, const Rotation<Vec<X>::kSize>& rotate, float eps) {
  using V = Vec<X>;
  Row<X, kSlots> out;
  float sum_sq = 0;
#pragma unroll
  for (int s = 0; s < kSlots; ++s)
#pragma unroll
    for (int i = 0; i < V::kSize; ++i) sum_sq += square(row.slot[s][i]);
  const float r = rsqrtf(warp_sum(sum_sq) / Row<X, kSlots>::kDh + eps);
#pragma unroll
  for (int s = 0; s < kSlots; ++s) {
    const auto w = Floats<V::kSize>::load(side.weight + row.column(s));
    float value[V::kSize];
#pragma unroll
    for (int i = 0; i < V::kSize; ++i) value[i] = row.slot[s][i] * (r * (1 + w[i]));
    if (s == 0) rotate(value);
#pragma unroll
    for (int i = 0; i < V::kSize; ++i) out.slot[s].set(i, value[i]);
  }
  out.store(side.y.row(token, head));
  if (threadIdx.x == 0) side.rstd[token * side.x.num + head] = r;
}

// A block per token. Reads and writes each query and key once: 4 (Hq + Hkv) Dh bytes per token in bf16.
template <class X, int kSlots>
__global__ void __launch_bounds__(kWarpSize* kWarps, kSlots == 1 ? 5 : 3)
    forward_kernel(ForwardSide<X> q, ForwardSide<X> k, Rotations rotations, float eps) {
  const int64_t n = blockIdx.x;
  const int num_heads = q.x.num + k.x.num;
  for (int first = threadIdx.y; first < num_heads; first += kWarps * kRowsAtOnce) {
    Row<X, kSlots> rows[kRowsAtOnce];
#pragma unroll
    for (int j = 0; j < kRowsAtOnce; ++j) {
      const int head = first + j * kWarps;
      if (head < num_heads) rows[j].load(head < q.x.num ? q.x.row(n, head) : k.x.row(n, head - q.x.num));
    }
    const Rotation<Vec<X>::kSize> rotate(rotations.of(n), rotations.pairs, 1);
#pragma unroll
    for (int j = 0; j < kRowsAtOnce; ++j) {
      const int head = first + j * kWarps;
      if (head < q.x.num) forward_row(q, rows[j], n, head, rotate, eps);
      else if (head < num_heads) forward_row(k, rows[j], n, head - q.x.num, rotate, eps);
    }
  }
}

// Any width: a warp per row, which reads it twice.
template <class X>
__device__ void forward_row_any(const ForwardSide<X>& side, int64_t token, int head, const float2* cos_sin, int pairs,
                                int Dh, float eps) {
  const X* x = side.x.row(token, head);
  X* y = side.y.row(token, head);
  float sum_sq = 0;
  for (int d = threadIdx.x; d < Dh; d += kWarpSize) sum_sq += square(float(x[d]));
  const float r = rsqrtf(warp_sum(sum_sq) / Dh + eps);
  auto normed = [&](int d) { return float(x[d]) * r * (1 + side.weight[d]); };
  for (int d = threadIdx.x; d < pairs; d += kWarpSize) {
    const float first = normed(d), second = normed(d + pairs);
    const float2 cs = cos_sin[d];
    y[d] = static_cast<X>(first * cs.x - second * cs.y);
    y[d + pairs] = static_cast<X>(second * cs.x + first * cs.y);
  }
  for (int d = 2 * pairs + threadIdx.x; d < Dh; d += kWarpSize) y[d] = static_cast<X>(normed(d));
  if (threadIdx.x == 0) side.rstd[token * side.x.num + head] = r;
}

template <class X>
__global__ void __launch_bounds__(kWarpSize* kWarps)
    forward_any_kernel(ForwardSide<X> q, ForwardSide<X> k, Rotations rotations, int Dh, float eps) {
  const int64_t n = blockIdx.x;
  const float2* cos_sin = rotations.of(n);
  for (int head = threadIdx.y; head < q.x.num + k.x.num; head += kWarps) {
    if (head < q.x.num) forward_row_any(q, n, head, cos_sin, rotations.pairs, Dh, eps);
    else forward_row_any(k, n, head - q.x.num, cos_sin, rotations.pairs, Dh, eps);
  }
}

// Gradients of the heads of one side in the tile's tokens; a warp takes every 8th row, while the loads of its next one
// are in flight. The rows' terms of d_weight are summed per lane, then over the warps in order.
template <class X, int kSlots>
__device__ void backward_side(const BackwardSide<X>& side, const float2* cos_sin, int pairs, int64_t begin,
                              int num_tokens, float (*of_warp)[Row<X, kSlots>::kDh]) {
  using V = Vec<X>;
  using R = Row<X, kSlots>;
  constexpr int kDh = R::kDh;
  const int num = side.x.num;
  const X *x = side.x.row(begin, 0), *d_y = side.d_y.row(begin, 0);
  const int x_stride = static_cast<int>(side.x.stride), d_y_stride = static_cast<int>(side.d_y.stride);
  X* d_x = side.d_x.row(begin, 0);
  const int d_x_stride = static_cast<int>(side.d_x.stride);
  const float* rstd = side.rstd + begin * num;
  float d_weight[kSlots][V::kSize] = {};

  R next_x, next_d_y;
  float next_r = 0;
  const int num_rows = num_tokens * num;
  const auto load = [&](int row) {
    if (row >= num_rows) return;
    next_x.load(x + row * x_stride);
    next_d_y.load(d_y + row * d_y_stride);
    next_r = rstd[row];
  };
  load(threadIdx.y);
  int token = threadIdx.y / num, head = threadIdx.y % num;
  for (int row = threadIdx.y; row < num_rows; row += kBackwardWarps) {
    const R v = next_x, gradient = next_d_y;
    const float r = next_r;
    load(row + kBackwardWarps);
    float g[kSlots][V::kSize];  // gradient of the norm's output
#pragma unroll
    for (int s = 0; s < kSlots; ++s)
#pragma unroll
      for (int i = 0; i < V::kSize; ++i) g[s][i] = gradient.slot[s][i];
    Rotation<V::kSize>(cos_sin + token * pairs, pairs, -1)(g[0]);
    float dot = 0;
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      const auto w = Floats<V::kSize>::load(side.weight + R::column(s));
#pragma unroll
      for (int i = 0; i < V::kSize; ++i) {
        d_weight[s][i] += g[s][i] * v.slot[s][i] * r;
        g[s][i] *= 1 + w[i];
        dot += g[s][i] * v.slot[s][i];
      }
    }
    const float along_x = r * r * r * warp_sum(dot) / kDh;
    R out;
#pragma unroll
    for (int s = 0; s < kSlots; ++s)
#pragma unroll
      for (int i = 0; i < V::kSize; ++i) out.slot[s].set(i, r * g[s][i] - along_x * v.slot[s][i]);
    out.store(d_x + row * d_x_stride);
    for (head += kBackwardWarps; head >= num; head -= num) ++token;
  }
#pragma unroll
  for (int s = 0; s < kSlots; ++s)
#pragma unroll
    for (int i = 0; i < V::kSize; ++i) of_warp[threadIdx.y][R::column(s) + i] = d_weight[s][i];
  __syncthreads();
  for (int d = threadIdx.y * kWarpSize + threadIdx.x; d < kDh; d += kWarpSize * kBackwardWarps) {
    float sum = of_warp[0][d];
#pragma unroll
    for (int warp = 1; warp < kBackwardWarps; ++warp) sum += of_warp[warp][d];
    side.partial[int64_t(blockIdx.x) * kDh + d] = sum;
  }
  __syncthreads();
}

// A block per 12 tokens: first their queries, then their keys. Reads x and d_y, writes d_x: 6 (Hq + Hkv) Dh bytes per
// token in bf16, and 2 Dh / 3 of partial sums. Rotations wait in shared memory, where every head of a token finds them.
template <class X, int kSlots>
__global__ void __launch_bounds__(kWarpSize* kBackwardWarps, kSlots == 1 ? 3 : 2)
    backward_kernel(BackwardSide<X> q, BackwardSide<X> k, Rotations rotations, int64_t N) {
  constexpr int kMostPairs = kWarpSize * Vec<X>::kSize / 2;
  __shared__ float of_warp[kBackwardWarps][Row<X, kSlots>::kDh];
  __shared__ alignas(16) float2 cos_sin[kTileTokens * kMostPairs];
  const int64_t begin = int64_t(blockIdx.x) * kTileTokens;
  const int num_tokens = static_cast<int>(min(int64_t(kTileTokens), N - begin)), pairs = rotations.pairs;
  for (int i = threadIdx.y * kWarpSize + threadIdx.x; i < num_tokens * pairs; i += kWarpSize * kBackwardWarps)
    cos_sin[i] = rotations.of(begin + i / pairs)[i % pairs];
  __syncthreads();
  backward_side<X, kSlots>(q, cos_sin, pairs, begin, num_tokens, of_warp);
  backward_side<X, kSlots>(k, cos_sin, pairs, begin, num_tokens, of_warp);
}

// Element d of a head's gradient after the norm: the gradient of the rotated head, rotated back.
template <class X>
__device__ __forceinline__ float rotated_back(const X* d_y, int d, const float2* cos_sin, int pairs) {
  const float g = static_cast<float>(d_y[d]);
  if (d >= 2 * pairs) return g;
  if (d < pairs) return g * cos_sin[d].x + static_cast<float>(d_y[d + pairs]) * cos_sin[d].y;
  return g * cos_sin[d - pairs].x - static_cast<float>(d_y[d - pairs]) * cos_sin[d - pairs].y;
}

template <class X>
__device__ void backward_row_any(const BackwardSide<X>& side, int64_t token, int head, const float2* cos_sin, int pairs,
                                 int Dh) {
  const X *x = side.x.row(token, head), *d_y = side.d_y.row(token, head);
  X* d_x = side.d_x.row(token, head);
  auto gradient = [&](int d) { return rotated_back(d_y, d, cos_sin, pairs) * (1 + side.weight[d]); };
  float dot = 0;
  for (int d = threadIdx.x; d < Dh; d += kWarpSize) dot += gradient(d) * static_cast<float>(x[d]);
  const float r = side.rstd[token * side.x.num + head], along_x = r * r * r * warp_sum(dot) / Dh;
  for (int d = threadIdx.x; d < Dh; d += kWarpSize)
    d_x[d] = static_cast<X>(r * gradient(d) - along_x * static_cast<float>(x[d]));
}

template <class X>
__global__ void __launch_bounds__(kWarpSize* kWarps)
    backward_any_kernel(BackwardSide<X> q, BackwardSide<X> k, Rotations rotations, int Dh) {
  const int64_t n = blockIdx.x;
  const float2* cos_sin = rotations.of(n);
  for (int head = threadIdx.y; head < q.x.num + k.x.num; head += kWarps) {
    if (head < q.x.num) backward_row_any(q, n, head, cos_sin, rotations.pairs, Dh);
    else backward_row_any(k, n, head - q.x.num, cos_sin, rotations.pairs, Dh);
  }
}

// What one row adds to d_weight[d].
template <class X>
struct WeightGradientTerm {
  BackwardSide<X> side;
  Rotations rotations;

  __device__ float operator()(int64_t row, int64_t d) const {
    const int64_t n = row / side.x.num;
    const int head = static_cast<int>(row % side.x.num);
    return rotated_back(side.d_y.row(n, head), static_cast<int>(d), rotations.of(n), rotations.pairs) *
           static_cast<float>(side.x.row(n, head)[d]) * side.rstd[row];
  }
};

Rotations make_rotations(Context& ctx, Scratch& scratch, const Segments& segments, const AttentionDims& dims) {
  const int pairs = static_cast<int>(dims.rotary_dim / 2);
  const auto& before = segments.tokens_before;
  const int64_t most_before = before.empty() ? 0 : *std::max_element(before.begin(), before.end());
  const int64_t count = (most_before + segments.row_tokens) * pairs;
  auto* cos_sin = reinterpret_cast<float2*>(scratch.array<float>(2 * count));
  if (count > 0 && !ctx.counts_only()) {
    rotations_kernel<<<ceil_div(count, 128), 128, 0, stream_of(ctx)>>>(
        cos_sin, count, pairs, static_cast<float>(dims.rope_theta), static_cast<float>(dims.rotary_dim),
        RotaryFrequencies<float>(dims.rope, dims.rotary_dim, dims.rope_theta),
        static_cast<float>(dims.rope.rotation_scale()));
    check_launch("attention_inputs rotations");
  }
  return {cos_sin, pointer<int32_t>(segments.on_gpu.position), pairs};
}

// Vectors per lane if the fast kernels can work on heads of these dims at these addresses, otherwise 0.
template <class X>
int slots_for(const AttentionDims& dims, std::initializer_list<const void*> addresses) {
  constexpr int64_t kWidth = kWarpSize * Vec<X>::kSize;
  for (const void* address : addresses)
    if (reinterpret_cast<uintptr_t>(address) % 16 != 0) return 0;
  if (dims.rotary_dim > kWidth || dims.rotary_dim / 2 % Vec<X>::kSize != 0) return 0;
  return dims.head_dim == kWidth ? 1 : dims.head_dim == 2 * kWidth ? 2 : 0;
}

}  // namespace

void attention_inputs_forward(Context& ctx, AttentionInputs out, const AttentionProjections& x,
                              const AttentionInputWeights& weights, const Segments& segments,
                              const AttentionDims& dims) {
  const int64_t N = segments.num_tokens(), Dh = dims.head_dim;
  const int Hq = static_cast<int>(dims.query_heads), Hkv = static_cast<int>(dims.kv_heads);
  const float eps = static_cast<float>(dims.eps);
  Scratch scratch(ctx);
  const Rotations rotations = make_rotations(ctx, scratch, segments, dims);
  if (ctx.counts_only()) return;
  dispatch_activation("x.q_gate", x.q_gate, [&]<class X> {
    const ForwardSide<X> q = {{pointer<X>(out.q), Hq, Dh},
                              {pointer<X>(x.q_gate), Hq, dims.query_parts() * Dh},
                              pointer<float>(out.q_rstd),
                              pointer<float>(weights.q_norm)};
    const ForwardSide<X> k = {{pointer<X>(out.k), Hkv, Dh},
                              {pointer<X>(x.k), Hkv, Dh},
                              pointer<float>(out.k_rstd),
                              pointer<float>(weights.k_norm)};
    const dim3 block(kWarpSize, kWarps);
    switch (slots_for<X>(dims, {q.y.data, q.x.data, q.weight, k.y.data, k.x.data, k.weight})) {
      case 1: forward_kernel<X, 1><<<N, block, 0, stream_of(ctx)>>>(q, k, rotations, eps); break;
      case 2: forward_kernel<X, 2><<<N, block, 0, stream_of(ctx)>>>(q, k, rotations, eps); break;
      default: forward_any_kernel<X><<<N, block, 0, stream_of(ctx)>>>(q, k, rotations, static_cast<int>(Dh), eps);
    }
    check_launch("attention_inputs_forward");
  });
}

void attention_inputs_backward(Context& ctx, AttentionProjections d_x, AttentionInputWeights d_weights,
                               const Tensor& d_q, const Tensor& d_k, const AttentionInputs& out,
                               const AttentionProjections& x, const AttentionInputWeights& weights,
                               const Segments& segments, const AttentionDims& dims) {
  const int64_t N = segments.num_tokens(), Dh = dims.head_dim, num_tiles = ceil_div(N, kTileTokens);
  const int Hq = static_cast<int>(dims.query_heads), Hkv = static_cast<int>(dims.kv_heads);
  Scratch scratch(ctx);
  const Rotations rotations = make_rotations(ctx, scratch, segments, dims);
  float *d_q_norm = pointer<float>(d_weights.q_norm), *d_k_norm = pointer<float>(d_weights.k_norm);
  dispatch_activation("x.q_gate", x.q_gate, [&]<class X> {
    const int64_t q_stride = dims.query_parts() * Dh;
    BackwardSide<X> q = {{pointer<X>(d_x.q_gate), Hq, q_stride}, {pointer<X>(d_q), Hq, Dh},
                         {pointer<X>(x.q_gate), Hq, q_stride},   pointer<float>(out.q_rstd),
                         pointer<float>(weights.q_norm),         nullptr};
    BackwardSide<X> k = {{pointer<X>(d_x.k), Hkv, Dh}, {pointer<X>(d_k), Hkv, Dh},     {pointer<X>(x.k), Hkv, Dh},
                         pointer<float>(out.k_rstd),   pointer<float>(weights.k_norm), nullptr};
    const int slots =
        slots_for<X>(dims, {q.d_x.data, q.d_y.data, q.x.data, q.weight, k.d_x.data, k.d_y.data, k.x.data, k.weight});
    if (slots == 0) {
      add_column_sums<float>(ctx, d_q_norm, N * Hq, Dh, WeightGradientTerm<X>{q, rotations});
      add_column_sums<float>(ctx, d_k_norm, N * Hkv, Dh, WeightGradientTerm<X>{k, rotations});
      if (ctx.counts_only()) return;
      backward_any_kernel<X><<<N, dim3(kWarpSize, kWarps), 0, stream_of(ctx)>>>(q, k, rotations, static_cast<int>(Dh));
      check_launch("attention_inputs_backward");
      return;
    }
    q.partial = scratch.array<float>(num_tiles * Dh);
    k.partial = scratch.array<float>(num_tiles * Dh);
    if (ctx.counts_only()) return;
    const dim3 block(kWarpSize, kBackwardWarps);
    const auto kernel = slots == 1 ? backward_kernel<X, 1> : backward_kernel<X, 2>;
    kernel<<<num_tiles, block, 0, stream_of(ctx)>>>(q, k, rotations, N);
    check_launch("attention_inputs_backward");
    add_partials(ctx, d_q_norm, q.partial, num_tiles, Dh);
    add_partials(ctx, d_k_norm, k.partial, num_tiles, Dh);
  });
}

Implementation attention_inputs_implementation(Context&, DType activation, const AttentionDims& dims) {
  const int slots = activation == DType::kBF16 ? slots_for<bf16>(dims, {}) : slots_for<float>(dims, {});
  if (slots > 0) return {concat("16 bytes at a time, heads of ", dims.head_dim), ""};
  return {"general kernels", concat("no fast kernel takes heads of ", dims.head_dim, " with ", dims.rotary_dim,
                                    " rotating dimensions in ", name_of(activation))};
}

}  // namespace braid::cuda
