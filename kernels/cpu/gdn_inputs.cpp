#include "kernels/gdn_inputs.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/ordered_sum.h"
#include "kernels/cpu/vector_math.h"

namespace braid::cpu {
namespace {

constexpr int64_t kTileTokens = 64;
constexpr double kL2NormEps = 1e-6;
constexpr double kSoftplusIsIdentity = 20;  // above this, in value and in slope

// Tokens of one document, with the bounds that the convolution may not cross.
struct Tile {
  int64_t begin, end, document_begin, document_end;
  int64_t before;  // tokens of the document that came before its row
  int64_t row;     // of the batch
};

std::vector<Tile> tiles_of(const Segments& segments) {
  std::vector<Tile> tiles;
  for (int64_t d = 0; d < segments.num_documents(); ++d) {
    const int64_t begin = segments.begin(d), end = segments.end(d);
    for (int64_t t = begin; t < end; t += kTileTokens)
      tiles.push_back(
          {t, std::min(t + kTileTokens, end), begin, end, segments.before_document(d), begin / segments.row_tokens});
  }
  return tiles;
}

// One head as the convolution sees it. `part` is 0 for q, 1 for k, 2 for v; row t of the part's tensor holds the head
// at (t * num_heads + head) * width.
struct Head {
  int64_t part, head, num_heads, width, column, channel;
  int64_t row(int64_t t) const { return (t * num_heads + head) * width; }
};

std::vector<Head> heads_of(const GdnDims& d) {
  std::vector<Head> heads;
  for (int64_t h = 0; h < d.key_heads; ++h) {
    heads.push_back({0, h, d.key_heads, d.key_dim, d.q_column(h), d.q_channel(h)});
    heads.push_back({1, h, d.key_heads, d.key_dim, d.k_column(h), d.k_channel(h)});
  }
  for (int64_t j = 0; j < d.value_heads; ++j)
    heads.push_back({2, j, d.value_heads, d.value_dim, d.v_column(j), d.v_channel(j)});
  return heads;
}

// taps (conv_kernel, conv_channels) = transposed conv weight, so that loops over channels are contiguous
template <class T>
void transpose_taps(T* taps, const T* conv, const GdnDims& d) {
  for (int64_t c = 0; c < d.conv_channels(); ++c)
    for (int64_t j = 0; j < d.conv_kernel; ++j) taps[j * d.conv_channels() + c] = conv[c * d.conv_kernel + j];
}

// u = sum over j < count of tap j times row j, element by element. The usual kernels have at most four taps: those are
// summed in registers.
template <int kCount, class T>
void convolve_fixed(T* u, const T* taps, int64_t tap_stride, const T* rows, int64_t row_stride, int64_t width) {
#pragma omp simd
  for (int64_t c = 0; c < width; ++c) {
    T sum = taps[c] * rows[c];
    for (int j = 1; j < kCount; ++j) sum += taps[j * tap_stride + c] * rows[j * row_stride + c];
    u[c] = sum;
  }
}
template <class T>
void convolve(T* u, const T* taps, int64_t tap_stride, const T* rows, int64_t row_stride, int64_t count,
              int64_t width) {
  switch (count) {
    case 1: return convolve_fixed<1>(u, taps, tap_stride, rows, row_stride, width);
    case 2: return convolve_fixed<2>(u, taps, tap_stride, rows, row_stride, width);
    case 3: return convolve_fixed<3>(u, taps, tap_stride, rows, row_stride, width);
    default: convolve_fixed<4>(u, taps, tap_stride, rows, row_stride, width);
  }
  for (int64_t j = 4; j < count; ++j) {
    const T *tap = taps + j * tap_stride, *row = rows + j * row_stride;
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) u[c] += tap[c] * row[c];
  }
}

// What the convolution reads: the rows of a tile's document, the first of which may lie in the halo.
template <class T>
struct ConvolutionInputs {
  ConvolutionInputs(const GdnDims& d, const Tensor& qkvz, const Tensor& halo, const T* taps)
      : kernel(d.conv_kernel),
        columns(d.qkvz_columns()),
        channels(d.conv_channels()),
        qkvz(qkvz.data<T>()),
        halo(halo.defined() ? halo.data<T>() : nullptr),
        taps(taps) {}
  static int64_t window_numel(const GdnDims& d) { return d.conv_kernel * std::max(d.key_dim, d.value_dim); }

  // Tokens that t reads, with itself.
  int64_t num_read(const Tile& tile, int64_t t) const {
    return std::min(kernel, t - tile.document_begin + 1 + tile.before);
  }
  const T* row(const Tile& tile, int64_t t) const {
    const int64_t back = tile.document_begin - t;  // beyond what the document has in its row
    return back <= 0 ? qkvz + t * columns : halo + ((tile.row + 1) * (kernel - 1) - back) * columns;
  }
  // The convolution's output of a head at token t. `window` (window_numel) is scratch.
  void convolve_head(T* u, const Tile& tile, int64_t t, const Head& head, T* window) const {
    const int64_t count = num_read(tile, t), first = t + 1 - count;
    const T* head_taps = taps + (kernel - count) * channels + head.channel;
    if (first >= tile.document_begin)
      return convolve(u, head_taps, channels, row(tile, first) + head.column, columns, count, head.width);
    for (int64_t j = 0; j < count; ++j)
      std::copy_n(row(tile, first + j) + head.column, head.width, window + j * head.width);
    convolve(u, head_taps, channels, window, head.width, count, head.width);
  }

  int64_t kernel, columns, channels;
  const T *qkvz, *halo, *taps;  // taps as transpose_taps leaves them
};

// rate (Hv) = -exp(a_log)
template <class T>
void decay_rates(T* rate, const Tensor& a_log) {
  for (int64_t j = 0; j < a_log.numel(); ++j) rate[j] = -fast_exp(a_log.data<T>()[j]);
}

template <class T>
T softplus(T x) {
  return x > T(kSoftplusIsIdentity) ? x : std::log1p(fast_exp(x));
}

}  // namespace

void gdn_inputs_forward(Context& ctx, GdnInputs out, const GdnProjections& x, const GdnInputWeights& weights,
                        const Segments& segments, const GdnDims& dims, const Tensor& halo) {
  const std::vector<Tile> tiles = tiles_of(segments);
  const std::vector<Head> heads = heads_of(dims);
  const int64_t Hv = dims.value_heads;
  dispatch_float("qkvz", x.qkvz, [&]<class T> {
    T* const y_of_part[] = {out.rule.q.data<T>(), out.rule.k.data<T>(), out.rule.v.data<T>()};
    T* const rstd_of_part[] = {out.q_rstd.data<T>(), out.k_rstd.data<T>(), nullptr};
    T *beta = out.rule.beta.data<T>(), *log_decay = out.rule.log_decay.data<T>();
    const T *ba = x.ba.data<T>(), *dt_bias = weights.dt_bias.data<T>();
    Scratch scratch(ctx);
    T *taps = scratch.array<T>(dims.conv_kernel * dims.conv_channels()), *rate = scratch.array<T>(Hv);
    const ConvolutionInputs<T> in(dims, x.qkvz, halo, taps);
    const int64_t window_numel = halo.defined() ? in.window_numel(dims) : 0;
    T* windows = scratch.array<T>(omp_get_max_threads() * window_numel);
    if (ctx.counts_only()) return;
    transpose_taps(taps, weights.conv.data<T>(), dims);
    decay_rates(rate, weights.a_log);
#pragma omp parallel for schedule(static) if (tiles.size() > 1)
    for (size_t i = 0; i < tiles.size(); ++i) {
      const Tile& tile = tiles[i];
      for (int64_t t = tile.begin; t < tile.end; ++t) {
        for (const Head& head : heads) {
          T* y = y_of_part[head.part] + head.row(t);
          in.convolve_head(y, tile, t, head, windows + omp_get_thread_num() * window_numel);
          T sum_sq = 0;
#pragma omp simd reduction(+ : sum_sq)
          for (int64_t c = 0; c < head.width; ++c) {
            y[c] = silu(y[c]);
            sum_sq += y[c] * y[c];
          }
          if (T* rstd = rstd_of_part[head.part]) {
            const T r = 1 / std::sqrt(sum_sq + T(kL2NormEps));
#pragma omp simd
            for (int64_t c = 0; c < head.width; ++c) y[c] *= r;
            rstd[t * head.num_heads + head.head] = r;
          }
        }
      }
      for (int64_t t = tile.begin; t < tile.end; ++t) {
        const T* ba_row = ba + t * dims.ba_columns();
        for (int64_t j = 0; j < Hv; ++j) {
          beta[t * Hv + j] = sigmoid(ba_row[dims.b_column(j)]);
          log_decay[t * Hv + j] = rate[j] * softplus(ba_row[dims.a_column(j)] + dt_bias[j]);
        }
      }
    }
  });
}

namespace {

// Scratch of one thread.
template <class T>
struct BackwardWork {
  BackwardWork(Scratch& scratch, const GdnDims& d)
      : d_u(scratch.array<T>((kTileTokens + d.conv_kernel - 1) * d.conv_channels())),
        d_taps(scratch.array<T>(d.conv_kernel * d.conv_channels())),
        window(scratch.array<T>(ConvolutionInputs<T>::window_numel(d))) {}
  T* d_u;     // (tokens, conv_channels)  of the tile, and of the tokens behind it that read the tile
  T* d_taps;  // (conv_kernel, conv_channels)
  T* window;
};

}  // namespace

void gdn_inputs_backward(Context& ctx, GdnProjections d_x, GdnInputWeights d_weights, const DeltaRuleInputs& d_out,
                         const GdnInputs& out, const GdnProjections& x, const GdnInputWeights& weights,
                         const Segments& segments, const GdnDims& dims, const GdnHalo& halo) {
  const std::vector<Tile> tiles = tiles_of(segments);
  const std::vector<Head> heads = heads_of(dims);
  const int64_t columns = dims.qkvz_columns(), channels = dims.conv_channels(), kernel = dims.conv_kernel;
  const int64_t Hv = dims.value_heads, num_tiles = tiles.size();
  dispatch_float("qkvz", x.qkvz, [&]<class T> {
    const T* const y_of_part[] = {out.rule.q.data<T>(), out.rule.k.data<T>(), out.rule.v.data<T>()};
    const T* const rstd_of_part[] = {out.q_rstd.data<T>(), out.k_rstd.data<T>(), nullptr};
    const T* const d_y_of_part[] = {d_out.q.data<T>(), d_out.k.data<T>(), d_out.v.data<T>()};
    const T* ba = x.ba.data<T>();
    T *d_qkvz = d_x.qkvz.data<T>(), *d_ba = d_x.ba.data<T>();
    Scratch scratch(ctx);
    T *taps = scratch.array<T>(kernel * channels), *rate = scratch.array<T>(Hv);
    std::vector<BackwardWork<T>> work;
    for (int thread = 0; thread < omp_get_max_threads(); ++thread) work.emplace_back(scratch, dims);
    const ConvolutionInputs<T> in(dims, x.qkvz, halo.rows, taps);
    Tensor d_rows = halo.d_rows;
    T* d_halo = d_rows.defined() ? d_rows.data<T>() : nullptr;
    if (!ctx.counts_only()) {
      if (d_halo) std::fill_n(d_halo, halo.d_rows.numel(), T(0));
      transpose_taps(taps, weights.conv.data<T>(), dims);
      decay_rates(rate, weights.a_log);
    }

    // One partial sum per tile; tiles restart at every document, so packed and separate documents add up alike.
    auto add_tile = [&](T* d_conv, int64_t i, int64_t) {
      const Tile& tile = tiles[i];
      const int64_t halo_end = std::min(tile.end + kernel - 1, tile.document_end);
      auto [d_u, d_taps, window] = work[omp_get_thread_num()];
      for (int64_t t = tile.begin; t < halo_end; ++t) {
        for (const Head& head : heads) {
          const T *y = y_of_part[head.part] + head.row(t), *d_y = d_y_of_part[head.part] + head.row(t);
          T* d_u_row = d_u + (t - tile.begin) * channels + head.channel;
          T r = 1, along_y = 0;  // v is not normalised
          if (const T* rstd = rstd_of_part[head.part]) {
            r = rstd[t * head.num_heads + head.head];
#pragma omp simd reduction(+ : along_y)
            for (int64_t c = 0; c < head.width; ++c) along_y += y[c] * d_y[c];
          }
          in.convolve_head(d_u_row, tile, t, head, window);
#pragma omp simd
          for (int64_t c = 0; c < head.width; ++c) {
            const T u = d_u_row[c], s = sigmoid(u);
            d_u_row[c] = r * (d_y[c] - along_y * y[c]) * (s + u * s * (1 - s));
          }
        }
      }
      std::fill_n(d_taps, kernel * channels, T(0));
      for (int64_t t = tile.begin; t < tile.end; ++t) {
        const int64_t num_read = in.num_read(tile, t);
        const int64_t num_behind = std::min(kernel, tile.document_end - t);  // tokens that read t
        for (const Head& head : heads) {
          const T* d_u_row = d_u + (t - tile.begin) * channels + head.channel;
          // The token i behind t reads it through tap kernel - 1 - i.
          convolve(d_qkvz + t * columns + head.column, taps + (kernel - 1) * channels + head.channel, -channels,
                   d_u_row, channels, num_behind, head.width);
          for (int64_t i = 0; i < num_read; ++i) {
            const T* x_row = in.row(tile, t - i) + head.column;
            T* d_tap = d_taps + (kernel - 1 - i) * channels + head.channel;
#pragma omp simd
            for (int64_t c = 0; c < head.width; ++c) d_tap[c] += d_u_row[c] * x_row[c];
          }
        }
      }
      for (int64_t back = 1; d_halo && tile.begin == tile.document_begin && back <= std::min(kernel - 1, tile.before);
           ++back) {
        T* d_row = d_halo + ((tile.row + 1) * (kernel - 1) - back) * columns;
        for (const Head& head : heads)  // the token i behind, of which d_u starts with the one `back` behind
          for (int64_t i = back; i < std::min(kernel, tile.document_end - tile.begin + back); ++i) {
            const T* tap = taps + (kernel - 1 - i) * channels + head.channel;
            const T* d_u_row = d_u + (i - back) * channels + head.channel;
#pragma omp simd
            for (int64_t c = 0; c < head.width; ++c) d_row[head.column + c] += tap[c] * d_u_row[c];
          }
      }
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t j = 0; j < kernel; ++j) d_conv[c * kernel + j] = d_taps[j * channels + c];
    };
    sum_rows_in_order(ctx, d_weights.conv.data<T>(), channels * kernel, num_tiles, 1, add_tile);

    const T* dt_bias = weights.dt_bias.data<T>();
    const T *beta = out.rule.beta.data<T>(), *log_decay = out.rule.log_decay.data<T>();
    const T *d_beta = d_out.beta.data<T>(), *d_log_decay = d_out.log_decay.data<T>();
    sum_rows_in_order(ctx, d_weights.dt_bias.data<T>(), Hv, num_tiles, 1, [&](T* d_dt_bias, int64_t i, int64_t) {
      for (int64_t t = tiles[i].begin; t < tiles[i].end; ++t) {
        const int64_t row = t * dims.ba_columns();
        for (int64_t j = 0; j < Hv; ++j) {
          const T b = beta[t * Hv + j], shifted = ba[row + dims.a_column(j)] + dt_bias[j];
          const T slope = shifted > T(kSoftplusIsIdentity) ? T(1) : sigmoid(shifted);
          const T d_a = rate[j] * slope * d_log_decay[t * Hv + j];
          d_ba[row + dims.b_column(j)] = d_beta[t * Hv + j] * b * (1 - b);
          d_ba[row + dims.a_column(j)] = d_a;
          d_dt_bias[j] += d_a;
        }
      }
    });
    sum_rows_in_order(ctx, d_weights.a_log.data<T>(), Hv, num_tiles, 1, [&](T* d_a_log, int64_t i, int64_t) {
      for (int64_t t = tiles[i].begin; t < tiles[i].end; ++t)
        for (int64_t j = 0; j < Hv; ++j) d_a_log[j] += d_log_decay[t * Hv + j] * log_decay[t * Hv + j];
    });
  });
}

}  // namespace braid::cpu
