#include "kernels/gdn_inputs.h"

#include "kernels/core/copy.h"
#include "kernels/cuda/common.cuh"
#include "kernels/cuda/ordered_sum.cuh"

// Heads of 128 and four taps, in any dtype: a thread follows the channels of one vector through a tile of tokens, with
// the inputs that its taps reach in registers. Other sizes: a warp or a thread per token, which reads its neighbours
// again.
namespace braid::cuda {
namespace {

constexpr float kL2NormEps = 1e-6f;
constexpr float kSoftplusIsIdentity = 20;  // above this, in value and in slope

__device__ __forceinline__ float silu(float x) { return x * sigmoid(x); }
// The slope of silu, given the sigmoid of x.
__device__ __forceinline__ float silu_slope(float x, float s) { return s * (1.0f + x * (1.0f - s)); }
__device__ __forceinline__ float silu_slope(float x) { return silu_slope(x, sigmoid(x)); }

// One pointer for each of the parts q, k and v of the convolution's channels.
template <class T>
struct Parts {
  T *q, *k, *v;
};
template <class X, class Rule>
Parts<X> parts_of(Rule& rule) {
  using T = std::remove_const_t<X>;
  return {pointer<T>(rule.q), pointer<T>(rule.k), pointer<T>(rule.v)};
}

// A head of one part; slots number them in the order of the convolution's channels.
struct Head {
  int64_t column, channel;          // its first in qkvz and of the convolution
  int64_t width, index, num_heads;  // row t of the part's tensor holds it at (t * num_heads + index) * width
  int part;

  static __host__ __device__ constexpr int64_t count(const GdnDims& d) { return 2 * d.key_heads + d.value_heads; }

  __device__ Head(const GdnDims& d, int64_t slot) {
    const int64_t Hk = d.key_heads;
    part = slot < Hk ? 0 : slot < 2 * Hk ? 1 : 2;
    index = slot - part * Hk;
    num_heads = part < 2 ? Hk : d.value_heads;
    width = part < 2 ? d.key_dim : d.value_dim;
    column = part == 0 ? d.q_column(index) : part == 1 ? d.k_column(index) : d.v_column(index);
    channel = part == 0 ? d.q_channel(index) : part == 1 ? d.k_channel(index) : d.v_channel(index);
  }
  template <class T>
  __device__ T* of(const Parts<T>& parts) const {
    return part == 0 ? parts.q : part == 1 ? parts.k : parts.v;
  }
  __device__ int64_t row(int64_t t) const { return (t * num_heads + index) * width; }
  __device__ int64_t statistic(int64_t t) const { return t * num_heads + index; }  // of (N, num_heads)
};

constexpr int kWidth = 128, kTaps = 4;
constexpr int kBefore = kTaps - 1;  // tokens that a token reads besides itself

bool fast_path_applies(const GdnDims& d) {
  return d.key_dim == kWidth && d.value_dim == kWidth && d.conv_kernel == kTaps;
}

// A thread's vector of channels.
template <class V>
struct Channels {
  static constexpr int kSize = V::kSize, kLanes = kWidth / kSize;
  float tap[kTaps][kSize];

  __device__ __forceinline__ void load(const float* conv, int64_t channel) {
#pragma unroll
    for (int c = 0; c < kSize; ++c) {
      const float4 taps = *reinterpret_cast<const float4*>(conv + (channel + c) * kTaps);
      tap[0][c] = taps.x, tap[1][c] = taps.y, tap[2][c] = taps.z, tap[3][c] = taps.w;
    }
  }
  // Sum over the lanes of the head; every lane gets it.
  static __device__ __forceinline__ float head_sum(float x) {
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kAllLanes, x, offset);
    return x;
  }
};

// What lies before rows that go on from there: see gdn_inputs.h. A document is named by its first token.
// Kernels that have no register to spare are also made for rows that all begin here.
template <class X>
struct NoHalo {
  static constexpr bool kIsThere = false;
  __device__ __forceinline__ const X* row(int64_t, int64_t, int64_t) const { return nullptr; }
};
template <class X>
struct Halo {
  static constexpr bool kIsThere = true;
  const X* rows;            // (B, conv_kernel - 1, columns); null: all rows begin here
  const int32_t* position;  // (N)  see Segments::Tables
  int64_t row_tokens, count;

  // Where the token so many before the document's first is kept, if it belongs to the document.
  __device__ __forceinline__ const X* row(int64_t document, int64_t back, int64_t columns) const {
    if (!rows || back > position[document]) return nullptr;
    return rows + place(document, back) * columns;
  }
  __device__ __forceinline__ int64_t place(int64_t document, int64_t back) const {
    return (document / row_tokens + 1) * count - back;
  }
};
template <class X>
Halo<X> halo_of(const Tensor& rows, const Segments& segments, const GdnDims& dims) {
  return {pointer<X>(rows), pointer<int32_t>(segments.on_gpu.position), segments.row_tokens, dims.conv_kernel - 1};
}

// Inputs of the three tokens before the current one, oldest first, zero where the document had not begun.
template <class V>
struct Window {
  static constexpr int kSize = V::kSize;
  float x[kBefore][kSize];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int j = 0; j < kBefore; ++j)
#pragma unroll
      for (int c = 0; c < kSize; ++c) x[j][c] = 0;
  }
  template <class X, class Halo>
  __device__ __forceinline__ void load(const X* x_rows, int64_t stride, int64_t column, int64_t t,
                                       int64_t document_begin, const Halo& halo) {
    clear();
#pragma unroll
    for (int j = 0; j < kBefore; ++j) {
      const int64_t token = t - kBefore + j;
      const X* from =
          token < document_begin ? halo.row(document_begin, document_begin - token, stride) : x_rows + token * stride;
      if (!from) continue;
      const auto row = V::load(from + column);
#pragma unroll
      for (int c = 0; c < kSize; ++c) x[j][c] = row[c];
    }
  }
  __device__ __forceinline__ float convolve(const Channels<V>& channels, int c, float current) const {
    float sum = channels.tap[kBefore][c] * current;
#pragma unroll
    for (int j = 0; j < kBefore; ++j) sum += channels.tap[j][c] * x[j][c];
    return sum;
  }
  __device__ __forceinline__ void push(int c, float current) {
#pragma unroll
    for (int j = 0; j + 1 < kBefore; ++j) x[j][c] = x[j + 1][c];
    x[kBefore - 1][c] = current;
  }
};

constexpr int kThreads = 128;
constexpr int kForwardTile = 64, kBackwardTile = 126;         // tokens; a multiple of those that are taken at once
constexpr int kForwardTokens = 4, kBackwardTokens = kBefore;  // at once, while the loads of as many are in flight
// Backward a thread has four channels: with eight, of bf16, it needs 221 registers, and a multiprocessor has 256
// threads.
template <class X>
using BackwardVec = Vec<X, 4 * sizeof(X)>;

// The vector of channels that belongs to a thread of a kernel with kThreads of them per block along x. Threads beyond
// the last head go along with head 0, because all lanes of a warp add up sums, and write nothing.
template <class V>
struct Lane {
  static constexpr int kLanes = Channels<V>::kLanes;
  bool exists;
  int64_t slot;
  int channel;  // within the head

  __device__ explicit Lane(const GdnDims& d) {
    const int64_t thread = int64_t(blockIdx.x) * kThreads + threadIdx.x;
    exists = thread / kLanes < Head::count(d);
    slot = exists ? thread / kLanes : 0;
    channel = static_cast<int>(thread % kLanes) * V::kSize;
  }
};

// Tokens that are taken at once, of rows that begin at `begin`: whether all are there and none begins a document. They
// then need no question each, of which a compiler makes a choice for every register of the window.
template <int kCount>
__device__ __forceinline__ bool all_go_on(const int (&document)[kCount], int64_t begin, int first, int end) {
  bool go_on = first + kCount <= end;
#pragma unroll
  for (int i = 0; i < kCount; ++i) go_on &= document[i] != static_cast<int>(begin) + first + i;
  return go_on;
}

// A thread per vector of channels and tile of 64 tokens, counted from its first. Reads the q, k and v columns of x once
// (and three tokens in 64 twice) and writes as much: 32 KB per token in bf16.
template <class X, class Halo>
__global__ void __launch_bounds__(kThreads, Halo::kIsThere ? 3 : 4)
    forward_kernel(Parts<X> out, Parts<float> rstds, const X* __restrict__ qkvz, const float* __restrict__ conv,
                   const int32_t* __restrict__ document_begin, Halo halo, int64_t N, GdnDims dims) {
  using V = Vec<X>;
  constexpr int kTokens = kForwardTokens;
  const Lane<V> lane(dims);
  const Head head(dims, lane.slot);
  const int64_t begin = int64_t(blockIdx.y) * kForwardTile;
  const int end = static_cast<int>(min(int64_t(kForwardTile), N - begin));
  const int64_t columns = dims.qkvz_columns(), column = head.column + lane.channel;
  const int x_stride = static_cast<int>(columns), num_heads = static_cast<int>(head.num_heads);
  const X* x = qkvz + begin * columns + column;
  X* y = head.of(out) + head.row(begin) + lane.channel;
  float* rstd = head.of(rstds);
  if (rstd) rstd += head.statistic(begin);

  Channels<V> channels;
  channels.load(conv, head.channel + lane.channel);
  Window<V> window;
  window.load(qkvz, columns, column, begin, document_begin[begin], halo);
  document_begin += begin;

  V next[kTokens];
  int next_document[kTokens];
  const auto load = [&](int first) {
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      const int t = min(first + i, end - 1);
      next[i] = V::load(x + t * x_stride);
      next_document[i] = document_begin[t];
    }
  };
  const auto take = [&](const V& now, int t) {
    float value[V::kSize], sum_sq = 0;
#pragma unroll
    for (int c = 0; c < V::kSize; ++c) {
      value[c] = silu(window.convolve(channels, c, now[c]));
      sum_sq += square(value[c]);
      window.push(c, now[c]);
    }
    sum_sq = Channels<V>::head_sum(sum_sq);
    const float r = rstd ? rsqrtf(sum_sq + kL2NormEps) : 1.0f;
    V row;
#pragma unroll
    for (int c = 0; c < V::kSize; ++c) row.set(c, value[c] * r);
    if (!lane.exists) return;
    row.store(y + t * num_heads * kWidth);
    if (rstd && lane.channel == 0) rstd[t * num_heads] = r;
  };
  load(0);
  for (int first = 0; first < end; first += kTokens) {
    V now[kTokens];
    int document[kTokens];
#pragma unroll
    for (int i = 0; i < kTokens; ++i) now[i] = next[i], document[i] = next_document[i];
    load(first + kTokens);
    if (all_go_on(document, begin, first, end)) {
#pragma unroll
      for (int i = 0; i < kTokens; ++i) take(now[i], first + i);
    } else {
#pragma unroll
      for (int i = 0; i < kTokens; ++i) {
        const int64_t t = begin + first + i;
        if (first + i >= end) break;
        if (document[i] == t) window.load(qkvz, columns, column, t, t, halo);
        take(now[i], first + i);
      }
    }
  }
}

// A thread per four channels and tile of 126 tokens, counted from its first. It forms d_u, the gradient of the
// convolution's output, of the tile's tokens and of the three behind it, which read the tile. Reads x and d_y and
// writes d_x, 48 KB per token in bf16; y is recomputed. One row of partial sums of d_conv per tile. Three tokens at
// once are as many as the window holds, so that little moves from register to register.
template <class X, class Halo>
__global__ void __launch_bounds__(kThreads, Halo::kIsThere ? 3 : 4)
    backward_kernel(X* __restrict__ d_qkvz, X* __restrict__ d_halo, float* __restrict__ d_conv, Parts<const X> d_out,
                    Parts<const float> rstds, const X* __restrict__ qkvz, const float* __restrict__ conv,
                    const int32_t* __restrict__ document_begin, Halo halo, int64_t N, GdnDims dims) {
  using V = BackwardVec<X>;
  constexpr int kSize = V::kSize, kTokens = kBackwardTokens;
  static_assert(kTokens == kBefore && kBackwardTile % kTokens == 0);
  const Lane<V> lane(dims);
  const Head head(dims, lane.slot);
  const int64_t begin = int64_t(blockIdx.y) * kBackwardTile;
  const int end = static_cast<int>(min(int64_t(kBackwardTile), N - begin));
  const int halo_end = static_cast<int>(min(int64_t(kBackwardTile + kBefore), N - begin));
  const int64_t columns = dims.qkvz_columns(), column = head.column + lane.channel;
  const int x_stride = static_cast<int>(columns), num_heads = static_cast<int>(head.num_heads);
  const X* x = qkvz + begin * columns + column;
  const X* d_y = head.of(d_out) + head.row(begin) + lane.channel;
  X* d_x = d_qkvz + begin * columns + column;
  const float* rstd = head.of(rstds);
  if (rstd) rstd += head.statistic(begin);

  Channels<V> channels;
  channels.load(conv, head.channel + lane.channel);
  float d_tap[kTaps][kSize] = {};
  Window<V> window, d_u;  // d_u of the three tokens before
  window.load(qkvz, columns, column, begin, document_begin[begin], halo);
  d_u.clear();
  document_begin += begin;
  int document = document_begin[0] - static_cast<int>(begin);  // may lie before the tile

  // Where d_x of a token goes: one before the document lies in the halo, and is stored with the document's first.
  const auto place_of = [&](int token) -> X* {
    if (!lane.exists || token >= end) return nullptr;
    if (token >= document) return token >= 0 ? d_x + token * x_stride : nullptr;
    if constexpr (Halo::kIsThere) {
      const int64_t back = document - token, at = begin + document;
      if (d_halo && document >= 0 && document < end && back <= halo.position[at])
        return d_halo + halo.place(at, back) * columns + column;
    }
    return nullptr;
  };

  // When no token from t on reads the three before it: their d_x.
  const auto finish_before = [&](int t) {
#pragma unroll
    for (int back = kBefore; back > 0; --back) {
      X* const to = place_of(t - back);
      if (!to) continue;
      V row;
#pragma unroll
      for (int c = 0; c < kSize; ++c) {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < back; ++i)  // the token i behind reads it through tap 3 - i
          sum += channels.tap[kBefore - i][c] * d_u.x[kBefore - back + i][c];
        row.set(c, sum);
      }
      row.store(to);
    }
  };

  struct Row {
    V x, d_y;
    float rstd;
  };
  Row next[kTokens];
  int next_document[kTokens];
  const auto load = [&](int first) {
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      const int t = min(first + i, halo_end - 1);
      next[i] = {V::load(x + t * x_stride), V::load(d_y + t * num_heads * kWidth), rstd ? rstd[t * num_heads] : 1.0f};
      next_document[i] = document_begin[t];
    }
  };
  const auto take = [&](const Row& now, int t, bool is_own) {
    float slope[kSize], y[kSize], along_y = 0;
#pragma unroll
    for (int c = 0; c < kSize; ++c) {
      const float u = window.convolve(channels, c, now.x[c]), s = sigmoid(u);
      slope[c] = silu_slope(u, s);
      y[c] = now.rstd * u * s;
      along_y += y[c] * now.d_y[c];
    }
    along_y = Channels<V>::head_sum(along_y);
    if (!rstd) along_y = 0;  // v is not normalised
    V row;
#pragma unroll
    for (int c = 0; c < kSize; ++c) {
      const float d_u_now = now.rstd * (now.d_y[c] - along_y * y[c]) * slope[c];
      if (is_own) {
        d_tap[kBefore][c] += d_u_now * now.x[c];
#pragma unroll
        for (int j = 0; j < kBefore; ++j) d_tap[j][c] += d_u_now * window.x[j][c];
      }
      float sum = channels.tap[0][c] * d_u_now;
#pragma unroll
      for (int i = 0; i < kBefore; ++i) sum += channels.tap[kBefore - i][c] * d_u.x[i][c];
      row.set(c, sum);
      window.push(c, now.x[c]);
      d_u.push(c, d_u_now);
    }
    if (X* const to = place_of(t - kBefore)) row.store(to);
  };
  load(0);
  for (int first = 0; first < halo_end; first += kTokens) {
    Row now[kTokens];
    int starts[kTokens];
#pragma unroll
    for (int i = 0; i < kTokens; ++i) now[i] = next[i], starts[i] = next_document[i];
    load(first + kTokens);
    if (all_go_on(starts, begin, first, end)) {
#pragma unroll
      for (int i = 0; i < kTokens; ++i) take(now[i], first + i, true);
    } else {
#pragma unroll
      for (int i = 0; i < kTokens; ++i) {
        const int t = first + i;
        if (t >= halo_end) break;
        if (starts[i] == begin + t) {
          finish_before(t);
          document = t;
          window.load(qkvz, columns, column, begin + t, begin + t, halo);
          d_u.clear();
        }
        take(now[i], t, t < end);
      }
    }
  }
  if (halo_end < end + kBefore) finish_before(halo_end);
  if (!lane.exists) return;
  float* to = d_conv + (blockIdx.y * dims.conv_channels() + head.channel + lane.channel) * kTaps;
#pragma unroll
  for (int c = 0; c < kSize; ++c)
    *reinterpret_cast<float4*>(to + c * kTaps) = make_float4(d_tap[0][c], d_tap[1][c], d_tap[2][c], d_tap[3][c]);
}

// What follows holds for every size. The inputs of a token of this document or before it; null: zeros.
template <class X>
__device__ const X* row_read(const X* qkvz, int64_t columns, int64_t token, int64_t document, const Halo<X>& halo) {
  if (token >= document) return qkvz + token * columns;
  return halo.row(document, document - token, columns);
}
// The convolution at one token and channel:
template <class X>
__device__ float convolve_any(const X* qkvz, const float* conv, const GdnDims& d, int64_t column, int64_t channel,
                              int64_t t, int64_t document_begin, const Halo<X>& halo) {
  float sum = 0;
  for (int64_t j = 0; j < d.conv_kernel; ++j) {
    const X* row = row_read(qkvz, d.qkvz_columns(), t - d.conv_kernel + 1 + j, document_begin, halo);
    if (row) sum += conv[channel * d.conv_kernel + j] * static_cast<float>(row[column]);
  }
  return sum;
}

constexpr int kWarps = 4;  // of a block, one token and head each

template <class X>
__global__ void __launch_bounds__(kWarpSize* kWarps)
    forward_any_kernel(Parts<X> out, Parts<float> rstds, const X* qkvz, const float* conv,
                       const int32_t* document_begin, Halo<X> halo, int64_t N, GdnDims dims) {
  const int64_t job = int64_t(blockIdx.x) * kWarps + threadIdx.y, t = job / Head::count(dims);
  if (t >= N) return;
  const Head head(dims, job % Head::count(dims));
  auto y = [&](int64_t c) {
    return silu(convolve_any(qkvz, conv, dims, head.column + c, head.channel + c, t, document_begin[t], halo));
  };
  float r = 1;
  if (float* rstd = head.of(rstds)) {
    float sum_sq = 0;
    for (int64_t c = threadIdx.x; c < head.width; c += kWarpSize) sum_sq += square(y(c));
    r = rsqrtf(warp_sum(sum_sq) + kL2NormEps);
    if (threadIdx.x == 0) rstd[head.statistic(t)] = r;
  }
  for (int64_t c = threadIdx.x; c < head.width; c += kWarpSize)
    head.of(out)[head.row(t) + c] = static_cast<X>(y(c) * r);
}

// d_u (N, conv_channels), a warp per token and head.
template <class X>
__global__ void __launch_bounds__(kWarpSize* kWarps)
    d_u_any_kernel(float* d_u, Parts<const X> d_out, Parts<const float> rstds, const X* qkvz, const float* conv,
                   const int32_t* document_begin, Halo<X> halo, int64_t N, GdnDims dims) {
  const int64_t job = int64_t(blockIdx.x) * kWarps + threadIdx.y, t = job / Head::count(dims);
  if (t >= N) return;
  const Head head(dims, job % Head::count(dims));
  const X* d_y = head.of(d_out) + head.row(t);
  auto u = [&](int64_t c) {
    return convolve_any(qkvz, conv, dims, head.column + c, head.channel + c, t, document_begin[t], halo);
  };
  float r = 1, along_y = 0;
  if (const float* rstd = head.of(rstds)) {
    r = rstd[head.statistic(t)];
    for (int64_t c = threadIdx.x; c < head.width; c += kWarpSize)
      along_y += r * silu(u(c)) * static_cast<float>(d_y[c]);
    along_y = warp_sum(along_y);
  }
  for (int64_t c = threadIdx.x; c < head.width; c += kWarpSize) {
    const float at = u(c);
    d_u[t * dims.conv_channels() + head.channel + c] =
        r * (static_cast<float>(d_y[c]) - along_y * r * silu(at)) * silu_slope(at);
  }
}

// d_x, a warp per token and head.
template <class X>
__global__ void __launch_bounds__(kWarpSize* kWarps)
    d_x_any_kernel(X* d_qkvz, const float* d_u, const float* conv, const int32_t* document_begin, int64_t N,
                   GdnDims dims) {
  const int64_t job = int64_t(blockIdx.x) * kWarps + threadIdx.y, t = job / Head::count(dims);
  if (t >= N) return;
  const Head head(dims, job % Head::count(dims));
  const int64_t taps = dims.conv_kernel;
  for (int64_t c = threadIdx.x; c < head.width; c += kWarpSize) {
    const int64_t channel = head.channel + c;
    float sum = 0;
    for (int64_t i = 0; i < taps && t + i < N && document_begin[t + i] <= t; ++i)
      sum += conv[channel * taps + taps - 1 - i] * d_u[(t + i) * dims.conv_channels() + channel];
    d_qkvz[t * dims.qkvz_columns() + head.column + c] = static_cast<X>(sum);
  }
}

// The same of the halo: a block row per row of d_halo, of which d_u of the row's first document is read.
template <class X>
__global__ void __launch_bounds__(kWarpSize* kWarps)
    d_halo_any_kernel(X* d_halo, const float* d_u, const float* conv, const int32_t* document_begin, Halo<X> halo,
                      int64_t num_rows, int64_t N, GdnDims dims) {
  const int64_t job = int64_t(blockIdx.x) * kWarps + threadIdx.y, place = job / Head::count(dims);
  if (place >= num_rows * halo.count) return;
  const Head head(dims, job % Head::count(dims));
  const int64_t document = place / halo.count * halo.row_tokens, back = halo.count - place % halo.count;
  if (back > halo.position[document]) return;
  const int64_t taps = dims.conv_kernel;
  for (int64_t c = threadIdx.x; c < head.width; c += kWarpSize) {
    const int64_t channel = head.channel + c;
    float sum = 0;
    for (int64_t i = back; i < taps; ++i) {
      const int64_t t = document - back + i;
      if (t >= N || document_begin[t] != document) break;
      sum += conv[channel * taps + taps - 1 - i] * d_u[t * dims.conv_channels() + channel];
    }
    d_halo[place * dims.qkvz_columns() + head.column + c] = static_cast<X>(sum);
  }
}

constexpr int64_t kGateTile = 128;  // tokens of a block, so that 32,768 of them give every multiprocessor some

// beta and log_decay, or their gradients.
template <class T>
struct Gates {
  T *beta, *log_decay;
};

// A thread per value head and some tokens.
__global__ void __launch_bounds__(ordered_sum::kColumns* ordered_sum::kRowsApart)
    gates_forward_kernel(Gates<float> out, const float* ba, const float* a_log, const float* dt_bias, int64_t N,
                         GdnDims dims) {
  const int64_t Hv = dims.value_heads, j = int64_t(blockIdx.x) * kWarpSize + threadIdx.x;
  if (j >= Hv) return;
  const int64_t b_column = dims.b_column(j), a_column = dims.a_column(j), columns = dims.ba_columns();
  const float rate = -expf(a_log[j]), shift = dt_bias[j];
  for (int64_t t = int64_t(blockIdx.y) * blockDim.y + threadIdx.y; t < N; t += int64_t(gridDim.y) * blockDim.y) {
    const float shifted = ba[t * columns + a_column] + shift;
    out.beta[t * Hv + j] = 1.0f / (1.0f + expf(-ba[t * columns + b_column]));
    out.log_decay[t * Hv + j] = rate * (shifted > kSoftplusIsIdentity ? shifted : log1pf(expf(shifted)));
  }
}

// Block (i, j) takes value heads [32 i, 32 i + 32) of tokens [128 j, 128 j + 128) and writes a row of partial sums of
// the gradients of dt_bias and a_log.
template <class X>
__global__ void __launch_bounds__(ordered_sum::kColumns* ordered_sum::kRowsApart)
    gates_backward_kernel(X* d_ba, float* d_dt_bias, float* d_a_log, Gates<const float> d, Gates<const float> y,
                          const float* ba, const float* a_log, const float* dt_bias, int64_t N, GdnDims dims) {
  using namespace ordered_sum;
  const int64_t Hv = dims.value_heads, j = int64_t(blockIdx.x) * kColumns + threadIdx.x;
  const int64_t begin = int64_t(blockIdx.y) * kGateTile, end = min(begin + kGateTile, N);
  const int64_t b_column = dims.b_column(j), a_column = dims.a_column(j), columns = dims.ba_columns();
  const float rate = j < Hv ? -expf(a_log[j]) : 0.0f, shift = j < Hv ? dt_bias[j] : 0.0f;
  const float sum_dt_bias = block_column_sum<float>(begin, end, j, Hv, [&](int64_t t, int64_t) {
    const float beta = y.beta[t * Hv + j], shifted = ba[t * columns + a_column] + shift;
    const float slope = shifted > kSoftplusIsIdentity ? 1.0f : 1.0f / (1.0f + expf(-shifted));
    const float d_a = rate * slope * d.log_decay[t * Hv + j];
    d_ba[t * columns + b_column] = static_cast<X>(d.beta[t * Hv + j] * beta * (1.0f - beta));
    d_ba[t * columns + a_column] = static_cast<X>(d_a);
    return d_a;
  });
  const float sum_a_log = block_column_sum<float>(
      begin, end, j, Hv, [&](int64_t t, int64_t) { return d.log_decay[t * Hv + j] * y.log_decay[t * Hv + j]; });
  if (threadIdx.y == 0 && j < Hv) {
    d_dt_bias[blockIdx.y * Hv + j] = sum_dt_bias;
    d_a_log[blockIdx.y * Hv + j] = sum_a_log;
  }
}

// Blocks of a kernel with a thread per vector of channels and tile of tokens.
template <class V>
dim3 tile_grid(const GdnDims& dims, int64_t N, int64_t tile) {
  return dim3(static_cast<unsigned>(ceil_div(Head::count(dims) * Channels<V>::kLanes, kThreads)),
              static_cast<unsigned>(ceil_div(N, tile)));
}
unsigned warp_grid(const GdnDims& dims, int64_t N) {
  return static_cast<unsigned>(ceil_div(N * Head::count(dims), kWarps));
}
const dim3 kWarpBlock(kWarpSize, kWarps);
const dim3 kGatesBlock(ordered_sum::kColumns, ordered_sum::kRowsApart);
dim3 gates_grid(const GdnDims& dims, int64_t N) {
  return dim3(static_cast<unsigned>(ceil_div(dims.value_heads, ordered_sum::kColumns)),
              static_cast<unsigned>(ceil_div(N, kGateTile)));
}

template <class X>
void backward_convolution(Context& ctx, Tensor& d_qkvz, Tensor& d_conv, const DeltaRuleInputs& d_rule,
                          const GdnInputs& out, const Tensor& qkvz, const Tensor& conv, const Segments& segments,
                          const GdnDims& dims, const GdnHalo& rows) {
  const int32_t* document_begin = pointer<int32_t>(segments.on_gpu.document_begin);
  const Halo<X> halo = halo_of<X>(rows.rows, segments, dims);
  Tensor d_rows = rows.d_rows;
  X* const d_halo = pointer<X>(d_rows);
  if (d_halo) fill_zero(ctx, d_rows);
  const int64_t N = qkvz.dim(0), channels = dims.conv_channels(), taps = dims.conv_kernel;
  const Parts<const X> d_out = parts_of<const X>(d_rule);
  const Parts<const float> rstds = {pointer<float>(out.q_rstd), pointer<float>(out.k_rstd), nullptr};
  const X* x = pointer<X>(qkvz);
  Scratch scratch(ctx);
  if (fast_path_applies(dims)) {
    const int64_t num_tiles = ceil_div(N, kBackwardTile);
    float* partial = scratch.array<float>(num_tiles * channels * taps);
    if (ctx.counts_only()) return;
    const auto run = [&](const auto& halo) {
      backward_kernel<X><<<tile_grid<BackwardVec<X>>(dims, N, kBackwardTile), kThreads, 0, stream_of(ctx)>>>(
          pointer<X>(d_qkvz), d_halo, partial, d_out, rstds, x, pointer<float>(conv), document_begin, halo, N, dims);
      check_launch("gdn_inputs backward");
    };
    if (halo.rows) run(halo);
    else run(NoHalo<X>());
    add_partials(ctx, pointer<float>(d_conv), partial, num_tiles, channels * taps);
    return;
  }
  float* d_u = scratch.array<float>(N * channels);
  if (!ctx.counts_only()) {
    d_u_any_kernel<X><<<warp_grid(dims, N), kWarpBlock, 0, stream_of(ctx)>>>(d_u, d_out, rstds, x, pointer<float>(conv),
                                                                             document_begin, halo, N, dims);
    check_launch("gdn_inputs d_u");
    d_x_any_kernel<X><<<warp_grid(dims, N), kWarpBlock, 0, stream_of(ctx)>>>(
        pointer<X>(d_qkvz), d_u, pointer<float>(conv), document_begin, N, dims);
    check_launch("gdn_inputs d_x");
    if (d_halo && halo.count > 0) {
      d_halo_any_kernel<X><<<warp_grid(dims, segments.num_rows * halo.count), kWarpBlock, 0, stream_of(ctx)>>>(
          d_halo, d_u, pointer<float>(conv), document_begin, halo, segments.num_rows, N, dims);
      check_launch("gdn_inputs d_halo");
    }
  }
  const int64_t columns = dims.qkvz_columns();
  add_column_sums(ctx, pointer<float>(d_conv), N, channels * taps, [=] __device__(int64_t t, int64_t weight) {
    const int64_t channel = weight / taps;
    const X* row = row_read(x, columns, t - taps + 1 + weight % taps, int64_t(document_begin[t]), halo);
    if (!row) return 0.0f;
    const int64_t q_channels = dims.key_heads * dims.key_dim;
    const bool is_v = channel >= 2 * q_channels;
    const int64_t width = is_v ? dims.value_dim : dims.key_dim;
    const int64_t slot = is_v ? 2 * dims.key_heads + (channel - 2 * q_channels) / width : channel / width;
    const Head head(dims, slot);
    return d_u[t * channels + channel] * static_cast<float>(row[head.column + channel - head.channel]);
  });
}

}  // namespace

void gdn_inputs_forward(Context& ctx, GdnInputs out, const GdnProjections& x, const GdnInputWeights& weights,
                        const Segments& segments, const GdnDims& dims, const Tensor& halo_rows) {
  if (ctx.counts_only()) return;
  const int64_t N = x.qkvz.dim(0);
  const Parts<float> rstds = {pointer<float>(out.q_rstd), pointer<float>(out.k_rstd), nullptr};
  const float* conv = pointer<float>(weights.conv);
  const int32_t* document_begin = pointer<int32_t>(segments.on_gpu.document_begin);
  dispatch_activation("qkvz", x.qkvz, [&]<class X> {
    const X* qkvz = pointer<X>(x.qkvz);
    const Parts<X> y = parts_of<X>(out.rule);
    const Halo<X> halo = halo_of<X>(halo_rows, segments, dims);
    if (fast_path_applies(dims)) {
      const auto run = [&](const auto& halo) {
        forward_kernel<X><<<tile_grid<Vec<X>>(dims, N, kForwardTile), kThreads, 0, stream_of(ctx)>>>(
            y, rstds, qkvz, conv, document_begin, halo, N, dims);
      };
      if (halo.rows) run(halo);
      else run(NoHalo<X>());
    } else {
      forward_any_kernel<X>
          <<<warp_grid(dims, N), kWarpBlock, 0, stream_of(ctx)>>>(y, rstds, qkvz, conv, document_begin, halo, N, dims);
    }
    check_launch("gdn_inputs forward");
  });
  gates_forward_kernel<<<gates_grid(dims, N), kGatesBlock, 0, stream_of(ctx)>>>(
      {pointer<float>(out.rule.beta), pointer<float>(out.rule.log_decay)}, pointer<float>(x.ba),
      pointer<float>(weights.a_log), pointer<float>(weights.dt_bias), N, dims);
  check_launch("gdn_inputs gates");
}

void gdn_inputs_backward(Context& ctx, GdnProjections d_x, GdnInputWeights d_weights, const DeltaRuleInputs& d_out,
                         const GdnInputs& out, const GdnProjections& x, const GdnInputWeights& weights,
                         const Segments& segments, const GdnDims& dims, const GdnHalo& halo) {
  const int64_t N = x.qkvz.dim(0), Hv = dims.value_heads;
  dispatch_activation("qkvz", x.qkvz, [&]<class X> {
    backward_convolution<X>(ctx, d_x.qkvz, d_weights.conv, d_out, out, x.qkvz, weights.conv, segments, dims, halo);
    const int64_t num_tiles = ceil_div(N, kGateTile);
    Scratch scratch(ctx);
    float *d_dt_bias = scratch.array<float>(num_tiles * Hv), *d_a_log = scratch.array<float>(num_tiles * Hv);
    if (ctx.counts_only()) return;
    const Gates<const float> d = {pointer<float>(d_out.beta), pointer<float>(d_out.log_decay)};
    const Gates<const float> y = {pointer<float>(out.rule.beta), pointer<float>(out.rule.log_decay)};
    gates_backward_kernel<X><<<gates_grid(dims, N), kGatesBlock, 0, stream_of(ctx)>>>(
        pointer<X>(d_x.ba), d_dt_bias, d_a_log, d, y, pointer<float>(x.ba), pointer<float>(weights.a_log),
        pointer<float>(weights.dt_bias), N, dims);
    check_launch("gdn_inputs gates backward");
    add_partials(ctx, pointer<float>(d_weights.dt_bias), d_dt_bias, num_tiles, Hv);
    add_partials(ctx, pointer<float>(d_weights.a_log), d_a_log, num_tiles, Hv);
  });
}

Implementation gdn_inputs_implementation(Context&, DType, const GdnDims& dims) {
  if (fast_path_applies(dims)) return {"fused, 16 bytes at a time, heads of 128, 4 taps", ""};
  return {"general kernels", concat("the fused kernels take heads of ", kWidth, " and ", kTaps, " taps, not heads of ",
                                    dims.key_dim, " and ", dims.value_dim, " and ", dims.conv_kernel, " taps")};
}

}  // namespace braid::cuda
