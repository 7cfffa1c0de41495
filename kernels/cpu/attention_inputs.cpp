#include "kernels/attention_inputs.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cpu/dispatch.h"

namespace braid::cpu {
namespace {

constexpr int64_t kTileTokens = 64;

// Consecutive tokens of one document.
struct TokenTile {
  int64_t document, begin, end, first_position;
};

std::vector<TokenTile> token_tiles(const Segments& segments) {
  std::vector<TokenTile> tiles;
  for (int64_t d = 0; d < segments.num_documents(); ++d)
    for (int64_t begin = segments.begin(d); begin < segments.end(d); begin += kTileTokens)
      tiles.push_back({d, begin, std::min(begin + kTileTokens, segments.end(d)),
                       segments.before_document(d) + begin - segments.begin(d)});
  return tiles;
}

// Angles of the positions from the first to the last that occurs and every pair of dimensions.
template <class T>
struct Rotations {
  const T *cosine, *sine;  // (positions, pairs)
  int64_t pairs, first;    // position
};

template <class T>
Rotations<T> make_rotations(Scratch& scratch, const Segments& segments, const AttentionDims& dims) {
  int64_t first = segments.num_documents() > 0 ? segments.before_document(0) : 0, last = first;
  for (int64_t d = 0; d < segments.num_documents(); ++d) {
    const int64_t position = segments.before_document(d);
    first = std::min(first, position);
    last = std::max(last, position + segments.length(d));
  }
  const int64_t pairs = dims.rotary_dim / 2;
  T *cosine = scratch.array<T>((last - first) * pairs), *sine = scratch.array<T>((last - first) * pairs);
  T* inv_freq = scratch.array<T>(pairs);
  if (scratch.counts_only()) return {};
  const RotaryFrequencies<T> frequencies(dims.rope, dims.rotary_dim, dims.rope_theta);
  const T scale = static_cast<T>(dims.rope.rotation_scale());
  for (int64_t i = 0; i < pairs; ++i)  // torch rounds the exponent, the power and the reciprocal to fp32
    inv_freq[i] = frequencies.of(i, std::pow(T(dims.rope_theta), T(2 * i) / T(dims.rotary_dim)));
#pragma omp parallel for schedule(static) if (last - first > 1)
  for (int64_t position = first; position < last; ++position) {
    for (int64_t i = 0; i < pairs; ++i) {
      const T angle = T(position) * inv_freq[i];
      cosine[(position - first) * pairs + i] = std::cos(angle) * scale;
      sine[(position - first) * pairs + i] = std::sin(angle) * scale;
    }
  }
  return {cosine, sine, pairs, first};
}

enum class Direction { kForward, kBackward };

// y may be x.
template <Direction kDirection, class T>
void rotate(T* y, const T* x, const Rotations<T>& r, int64_t position) {
  const T *cosine = r.cosine + (position - r.first) * r.pairs, *sine = r.sine + (position - r.first) * r.pairs;
  const int64_t pairs = r.pairs;
#pragma omp simd
  for (int64_t i = 0; i < pairs; ++i) {
    const T s = kDirection == Direction::kForward ? sine[i] : -sine[i];
    const T first = x[i], second = x[i + pairs];
    y[i] = first * cosine[i] - second * s;
    y[i + pairs] = second * cosine[i] + first * s;
  }
}

template <class T>
T head_forward(T* y, const T* x, const T* weight, const Rotations<T>& rotations, int64_t position, int64_t Dh, T eps) {
  T sum_sq = 0;
#pragma omp simd reduction(+ : sum_sq)
  for (int64_t d = 0; d < Dh; ++d) sum_sq += x[d] * x[d];
  const T rstd = 1 / std::sqrt(sum_sq / T(Dh) + eps);
#pragma omp simd
  for (int64_t d = 0; d < Dh; ++d) y[d] = x[d] * rstd * (1 + weight[d]);
  rotate<Direction::kForward>(y, y, rotations, position);
  return rstd;
}

// d_x is overwritten, d_weight += .
template <class T>
void head_backward(T* d_x, T* d_weight, const T* d_y, const T* x, const T* weight, T rstd,
                   const Rotations<T>& rotations, int64_t position, int64_t Dh) {
  std::copy_n(d_y, Dh, d_x);
  rotate<Direction::kBackward>(d_x, d_x, rotations, position);  // now the gradient of the norm's output
  T dot = 0;
#pragma omp simd reduction(+ : dot)
  for (int64_t d = 0; d < Dh; ++d) dot += d_x[d] * (1 + weight[d]) * x[d];
  const T along_x = rstd * rstd * rstd * dot / T(Dh);
#pragma omp simd
  for (int64_t d = 0; d < Dh; ++d) {
    d_weight[d] += d_x[d] * x[d] * rstd;
    d_x[d] = rstd * d_x[d] * (1 + weight[d]) - along_x * x[d];
  }
}

}  // namespace

void attention_inputs_forward(Context& ctx, AttentionInputs out, const AttentionProjections& x,
                              const AttentionInputWeights& weights, const Segments& segments,
                              const AttentionDims& dims) {
  const int64_t Hq = dims.query_heads, Hkv = dims.kv_heads, Dh = dims.head_dim, q_stride = dims.query_parts() * Dh;
  const std::vector<TokenTile> tiles = token_tiles(segments);
  dispatch_float("x.q_gate", x.q_gate, [&]<class T> {
    Scratch scratch(ctx);
    const Rotations<T> rotations = make_rotations<T>(scratch, segments, dims);
    const T eps = static_cast<T>(dims.eps);
    T *q = out.q.data<T>(), *k = out.k.data<T>(), *q_rstd = out.q_rstd.data<T>(), *k_rstd = out.k_rstd.data<T>();
    const T *x_q = x.q_gate.data<T>(), *x_k = x.k.data<T>();
    const T *q_norm = weights.q_norm.data<T>(), *k_norm = weights.k_norm.data<T>();
    if (ctx.counts_only()) return;
#pragma omp parallel for schedule(dynamic) if (tiles.size() > 1)
    for (size_t t = 0; t < tiles.size(); ++t) {
      for (int64_t n = tiles[t].begin; n < tiles[t].end; ++n) {
        const int64_t position = n - tiles[t].begin + tiles[t].first_position;
        for (int64_t i = n * Hq; i < (n + 1) * Hq; ++i)
          q_rstd[i] = head_forward(q + i * Dh, x_q + i * q_stride, q_norm, rotations, position, Dh, eps);
        for (int64_t i = n * Hkv; i < (n + 1) * Hkv; ++i)
          k_rstd[i] = head_forward(k + i * Dh, x_k + i * Dh, k_norm, rotations, position, Dh, eps);
      }
    }
  });
}

void attention_inputs_backward(Context& ctx, AttentionProjections d_x, AttentionInputWeights d_weights,
                               const Tensor& d_q, const Tensor& d_k, const AttentionInputs& out,
                               const AttentionProjections& x, const AttentionInputWeights& weights,
                               const Segments& segments, const AttentionDims& dims) {
  const int64_t Hq = dims.query_heads, Hkv = dims.kv_heads, Dh = dims.head_dim, q_stride = dims.query_parts() * Dh;
  const std::vector<TokenTile> tiles = token_tiles(segments);
  dispatch_float("x.q_gate", x.q_gate, [&]<class T> {
    Scratch scratch(ctx);
    const Rotations<T> rotations = make_rotations<T>(scratch, segments, dims);
    T *d_x_q = d_x.q_gate.data<T>(), *d_x_k = d_x.k.data<T>();
    const T *d_q_data = d_q.data<T>(), *d_k_data = d_k.data<T>();
    const T *x_q = x.q_gate.data<T>(), *x_k = x.k.data<T>();
    const T *q_rstd = out.q_rstd.data<T>(), *k_rstd = out.k_rstd.data<T>();
    const T *q_norm = weights.q_norm.data<T>(), *k_norm = weights.k_norm.data<T>();
    T* partials = scratch.array<T>(tiles.size() * 2 * Dh);  // per tile: the gradients of q_norm and of k_norm
    if (ctx.counts_only()) return;
#pragma omp parallel for schedule(dynamic)
    for (size_t t = 0; t < tiles.size(); ++t) {
      T *d_q_norm = partials + t * 2 * Dh, *d_k_norm = d_q_norm + Dh;
      std::fill_n(d_q_norm, 2 * Dh, T(0));
      for (int64_t n = tiles[t].begin; n < tiles[t].end; ++n) {
        const int64_t position = n - tiles[t].begin + tiles[t].first_position;
        for (int64_t i = n * Hq; i < (n + 1) * Hq; ++i)
          head_backward(d_x_q + i * q_stride, d_q_norm, d_q_data + i * Dh, x_q + i * q_stride, q_norm, q_rstd[i],
                        rotations, position, Dh);
        for (int64_t i = n * Hkv; i < (n + 1) * Hkv; ++i)
          head_backward(d_x_k + i * Dh, d_k_norm, d_k_data + i * Dh, x_k + i * Dh, k_norm, k_rstd[i], rotations,
                        position, Dh);
      }
    }
    // Tiles into their document, documents into the weights.
    T *d_q_norm = d_weights.q_norm.data<T>(), *d_k_norm = d_weights.k_norm.data<T>();
    for (size_t t = 0; t < tiles.size();) {
      T* sum = partials + t * 2 * Dh;
      const int64_t document = tiles[t].document;
      for (++t; t < tiles.size() && tiles[t].document == document; ++t)
        for (int64_t d = 0; d < 2 * Dh; ++d) sum[d] += partials[t * 2 * Dh + d];
      for (int64_t d = 0; d < Dh; ++d) {
        d_q_norm[d] += sum[d];
        d_k_norm[d] += sum[Dh + d];
      }
    }
  });
}

}  // namespace braid::cpu
