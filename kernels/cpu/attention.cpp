#include "kernels/attention.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/vector_math.h"

namespace braid::cpu {
namespace {

// Tokens in a tile of queries and of keys; both grids restart at every document. A tile of queries holds all heads that
// share a key/value head, so that one product serves the group.
constexpr int64_t kTileQueries = 32, kTileKeys = 256;

// Backward works on at most this many interleaved sets of query tiles of a document at a time. Each set after the first
// needs its own d_k and d_v, which are added in order at the end.
constexpr int64_t kMaxSets = 8;

struct Layout {
  int64_t Hq, Hkv, Dh;
  int64_t group;  // query heads per key/value head
  explicit Layout(const AttentionTensors& in) : Hq(in.q.dim(1)), Hkv(in.k.dim(1)), Dh(in.q.dim(2)), group(Hq / Hkv) {}
  int64_t tile_rows() const { return group * kTileQueries; }
  int64_t q_at(int64_t n, int64_t head) const { return (n * Hq + head) * Dh; }
  int64_t kv_at(int64_t n, int64_t kv_head) const { return (n * Hkv + kv_head) * Dh; }
  int64_t gate_at(int64_t n, int64_t head) const { return ((n * Hq + head) * 2 + 1) * Dh; }
};

// The queries [begin, end) of one group of heads. Its rows are ordered by head, then by token.
// Keys are counted in k and v, where tokens that came before a row lie between those of the queries.
struct QueryTile {
  int64_t document_begin, begin, end, kv_head;  // document_begin: its first key
  int64_t key_shift;                            // key of token n: n + key_shift
  int64_t tokens() const { return end - begin; }

  // body(row, token, head)
  template <class Body>
  void for_each_row(const Layout& l, Body&& body) const {
    for (int64_t g = 0; g < l.group; ++g)
      for (int64_t i = 0; i < tokens(); ++i) body(g * tokens() + i, begin + i, kv_head * l.group + g);
  }
  // How many of the keys from `key` on token n sees. None in the last tile of keys, where tokens came before a row.
  int64_t visible(int64_t n, int64_t key, int64_t keys) const {
    return std::clamp<int64_t>(n + key_shift - key + 1, 0, keys);
  }
  // body(first key, number of keys) over the keys that any of the queries sees
  template <class Body>
  void for_each_key_tile(Body&& body) const {
    const int64_t end_key = end + key_shift;
    for (int64_t key = document_begin; key < end_key; key += kTileKeys) body(key, std::min(kTileKeys, end_key - key));
  }
};

int64_t num_query_tiles(const Segments& segments, int64_t document) {
  return (segments.length(document) + kTileQueries - 1) / kTileQueries;
}

// Where the keys of documents lie in k and v. Rows bring the tokens that came before them.
class DocumentKeys {
 public:
  explicit DocumentKeys(const Segments& segments) : segments_(segments), before_rows_(segments.num_rows + 1, 0) {
    for (int64_t row = 0; row < segments.num_rows; ++row)
      before_rows_[row + 1] = before_rows_[row] + segments.before(row);
  }
  // Key of token n of the document: n + shift.
  int64_t shift(int64_t document) const { return before_rows_[segments_.begin(document) / segments_.row_tokens + 1]; }
  int64_t begin(int64_t document) const {
    return segments_.begin(document) + shift(document) - segments_.before_document(document);
  }
  int64_t count(int64_t document) const { return segments_.length(document) + segments_.before_document(document); }

 private:
  const Segments& segments_;
  std::vector<int64_t> before_rows_;  // (B + 1)  tokens that rows before bring
};

QueryTile query_tile(const Segments& segments, const DocumentKeys& keys, int64_t document, int64_t kv_head,
                     int64_t tile) {
  const int64_t begin = segments.begin(document) + tile * kTileQueries;
  return {keys.begin(document), begin, std::min(begin + kTileQueries, segments.end(document)), kv_head,
          keys.shift(document)};
}

template <class T>
struct ForwardPanels {
  T *q, *sum_pv;               // (rows, Dh)
  T* score;                    // (rows, kTileKeys)
  T *highest_score, *sum_exp;  // (rows)

  static int64_t numel(const Layout& l) { return l.tile_rows() * (2 * l.Dh + kTileKeys + 2); }
  ForwardPanels(T* memory, const Layout& l)
      : q(memory),
        sum_pv(q + l.tile_rows() * l.Dh),
        score(sum_pv + l.tile_rows() * l.Dh),
        highest_score(score + l.tile_rows() * kTileKeys),
        sum_exp(highest_score + l.tile_rows()) {}
};

// One step of the running softmax: scores become exp(score - highest so far) and what was summed before is rescaled to
// the new highest score.
template <class T>
void softmax_step(T* score, T* sum_pv, T& highest, T& sum_exp, int64_t visible, int64_t keys, int64_t Dh) {
  T tile_highest = highest;
#pragma omp simd reduction(max : tile_highest)
  for (int64_t j = 0; j < visible; ++j) tile_highest = std::max(tile_highest, score[j]);
  if (tile_highest > highest) {
    const T rescale = fast_exp(highest - tile_highest);
    highest = tile_highest;
    sum_exp *= rescale;
#pragma omp simd
    for (int64_t d = 0; d < Dh; ++d) sum_pv[d] *= rescale;
  }
  const T offset = highest;
  T tile_sum = 0;
#pragma omp simd reduction(+ : tile_sum)
  for (int64_t j = 0; j < visible; ++j) {
    score[j] = fast_exp(score[j] - offset);
    tile_sum += score[j];
  }
  std::fill(score + visible, score + keys, T(0));
  sum_exp += tile_sum;
}

// Returns the largest score.
template <class T>
T forward_tile(AttentionOutputs& out, const AttentionTensors& in, const Layout& l, const QueryTile& tile,
               const ForwardPanels<T>& p) {
  const int64_t rows = l.group * tile.tokens(), Dh = l.Dh, kv_stride = l.Hkv * Dh;
  const T *q = in.q.data<T>(), *gate = in.q_gate.defined() ? in.q_gate.data<T>() : nullptr;
  tile.for_each_row(
      l, [&](int64_t row, int64_t n, int64_t head) { std::copy_n(q + l.q_at(n, head), Dh, p.q + row * Dh); });
  std::fill_n(p.sum_pv, rows * Dh, T(0));
  std::fill_n(p.highest_score, rows, -std::numeric_limits<T>::infinity());
  std::fill_n(p.sum_exp, rows, T(0));

  tile.for_each_key_tile([&](int64_t key, int64_t keys) {
    const T *k = in.k.data<T>() + l.kv_at(key, tile.kv_head), *v = in.v.data<T>() + l.kv_at(key, tile.kv_head);
    gemm({rows, keys, Dh}, T(1) / std::sqrt(T(Dh)), {p.q, Dh}, {k, kv_stride, true}, T(0), p.score, kTileKeys);
    tile.for_each_row(l, [&](int64_t row, int64_t n, int64_t) {
      softmax_step(p.score + row * kTileKeys, p.sum_pv + row * Dh, p.highest_score[row], p.sum_exp[row],
                   tile.visible(n, key, keys), keys, Dh);
    });
    gemm({rows, Dh, keys}, T(1), {p.score, kTileKeys}, {v, kv_stride}, T(1), p.sum_pv, Dh);
  });

  T *o = out.o.data<T>(), *y = out.y.data<T>(), *lse = out.lse.data<T>();
  tile.for_each_row(l, [&](int64_t row, int64_t n, int64_t head) {
    lse[n * l.Hq + head] = p.highest_score[row] + std::log(p.sum_exp[row]);
    const T scale = 1 / p.sum_exp[row];
    const T* sum_pv = p.sum_pv + row * Dh;
    T *o_n = o + l.q_at(n, head), *y_n = y + l.q_at(n, head);
    if (!gate) {
#pragma omp simd
      for (int64_t d = 0; d < Dh; ++d) y_n[d] = o_n[d] = sum_pv[d] * scale;
      return;
    }
    const T* gate_n = gate + l.gate_at(n, head);
#pragma omp simd
    for (int64_t d = 0; d < Dh; ++d) {
      o_n[d] = sum_pv[d] * scale;
      y_n[d] = o_n[d] * sigmoid(gate_n[d]);
    }
  });
  return *std::max_element(p.highest_score, p.highest_score + rows);
}

template <class T>
struct BackwardPanels {
  T *q, *d_q, *d_o;   // (rows, Dh)
  T *prob, *d_score;  // (rows, kTileKeys)
  T *lse, *delta;     // (rows)   delta = sum over Dh of d_o * o

  static int64_t numel(const Layout& l) { return l.tile_rows() * (3 * l.Dh + 2 * kTileKeys + 2); }
  BackwardPanels(T* memory, const Layout& l)
      : q(memory),
        d_q(q + l.tile_rows() * l.Dh),
        d_o(d_q + l.tile_rows() * l.Dh),
        prob(d_o + l.tile_rows() * l.Dh),
        d_score(prob + l.tile_rows() * kTileKeys),
        lse(d_score + l.tile_rows() * kTileKeys),
        delta(lse + l.tile_rows()) {}
};

template <class T>
T dot(const T* x, const T* y, int64_t Dh) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t d = 0; d < Dh; ++d) sum += x[d] * y[d];
  return sum;
}

// Gradient through the gate.
template <class T>
void gate_backward(T* d_o, T* d_gate, const T* d_y, const T* o, const T* gate, int64_t Dh) {
#pragma omp simd
  for (int64_t d = 0; d < Dh; ++d) {
    const T open = sigmoid(gate[d]);
    d_o[d] = d_y[d] * open;
    d_gate[d] = d_o[d] * o[d] * (1 - open);
  }
}

// On entry prob holds scores and d_score holds d_prob.
template <class T>
void softmax_backward(T* prob, T* d_score, T lse, T delta, T scale, int64_t visible, int64_t keys) {
#pragma omp simd
  for (int64_t j = 0; j < visible; ++j) {
    prob[j] = fast_exp(prob[j] - lse);
    d_score[j] = prob[j] * (d_score[j] - delta) * scale;
  }
  std::fill(prob + visible, prob + keys, T(0));
  std::fill(d_score + visible, d_score + keys, T(0));
}

// d_q and d_gate of the tile are complete; d_k and d_v (keys of the document, Hkv, Dh) of those it sees are added to.
template <class T>
void backward_tile(AttentionGradients& d_in, T* d_k, T* d_v, const Tensor& d_y, const AttentionTensors& in,
                   const AttentionOutputs& out, const Layout& l, const QueryTile& tile, const BackwardPanels<T>& p) {
  const int64_t rows = l.group * tile.tokens(), Dh = l.Dh, kv_stride = l.Hkv * Dh;
  const T scale = T(1) / std::sqrt(T(Dh));
  const T *q = in.q.data<T>(), *o = out.o.data<T>(), *lse = out.lse.data<T>();
  const T* dy = d_y.data<T>();
  T* d_q = d_in.q.data<T>();
  const bool gated = in.q_gate.defined();
  const T* gate = gated ? in.q_gate.data<T>() : nullptr;
  T* d_gate = gated ? d_in.q_gate.data<T>() : nullptr;
  tile.for_each_row(l, [&](int64_t row, int64_t n, int64_t head) {
    const int64_t at = l.q_at(n, head), gate_at = l.gate_at(n, head);
    std::copy_n(q + at, Dh, p.q + row * Dh);
    p.lse[row] = lse[n * l.Hq + head];
    T* d_o = p.d_o + row * Dh;
    if (gated) gate_backward(d_o, d_gate + gate_at, dy + at, o + at, gate + gate_at, Dh);
    else std::copy_n(dy + at, Dh, d_o);
    p.delta[row] = dot(d_o, o + at, Dh);  // of both in one place: another loop may add in another order
  });

  tile.for_each_key_tile([&](int64_t key, int64_t keys) {
    const T *k = in.k.data<T>() + l.kv_at(key, tile.kv_head), *v = in.v.data<T>() + l.kv_at(key, tile.kv_head);
    const int64_t d_kv_at = l.kv_at(key - tile.document_begin, tile.kv_head);
    gemm({rows, keys, Dh}, scale, {p.q, Dh}, {k, kv_stride, true}, T(0), p.prob, kTileKeys);
    gemm({rows, keys, Dh}, T(1), {p.d_o, Dh}, {v, kv_stride, true}, T(0), p.d_score, kTileKeys);
    tile.for_each_row(l, [&](int64_t row, int64_t n, int64_t) {
      softmax_backward(p.prob + row * kTileKeys, p.d_score + row * kTileKeys, p.lse[row], p.delta[row], scale,
                       tile.visible(n, key, keys), keys);
    });
    gemm({rows, Dh, keys}, T(1), {p.d_score, kTileKeys}, {k, kv_stride}, key == tile.document_begin ? T(0) : T(1),
         p.d_q, Dh);
    gemm({keys, Dh, rows}, T(1), {p.d_score, kTileKeys, true}, {p.q, Dh}, T(1), d_k + d_kv_at, kv_stride);
    gemm({keys, Dh, rows}, T(1), {p.prob, kTileKeys, true}, {p.d_o, Dh}, T(1), d_v + d_kv_at, kv_stride);
  });

  tile.for_each_row(
      l, [&](int64_t row, int64_t n, int64_t head) { std::copy_n(p.d_q + row * Dh, Dh, d_q + l.q_at(n, head)); });
}

// Of a tile whose outputs are there: the weight of the first token of the document, summed over valid tokens and heads.
template <class T>
double first_token_share(const AttentionOutputs& out, const AttentionTensors& in, const Layout& l,
                         const QueryTile& tile, const std::vector<uint8_t>& valid) {
  const T *q = in.q.data<T>(), *first = in.k.data<T>() + l.kv_at(tile.document_begin, tile.kv_head);
  const T *lse = out.lse.data<T>(), scale = T(1) / std::sqrt(T(l.Dh));
  double sum = 0;
  tile.for_each_row(l, [&](int64_t, int64_t n, int64_t head) {
    if (valid[n]) sum += std::exp(double(scale * dot(q + l.q_at(n, head), first, l.Dh) - lse[n * l.Hq + head]));
  });
  return sum;
}

// The query tiles set, set + num_sets, set + 2 num_sets, ... of a document: equal work for every set.
struct TileSet {
  int64_t document, kv_head, set, num_sets;
};

int64_t num_tile_sets(const Segments& segments, int64_t document) {
  return std::min(kMaxSets, (num_query_tiles(segments, document) + 1) / 2);
}

}  // namespace

void attention_forward(Context& ctx, AttentionOutputs out, const AttentionTensors& in, const Segments& segments) {
  const Layout l(in);
  const DocumentKeys keys(segments);
  std::vector<QueryTile> tiles;  // the longest of a document first, which evens out the end
  for (int64_t document = 0; document < segments.num_documents(); ++document)
    for (int64_t tile = num_query_tiles(segments, document) - 1; tile >= 0; --tile)
      for (int64_t kv_head = 0; kv_head < l.Hkv; ++kv_head)
        tiles.push_back(query_tile(segments, keys, document, kv_head, tile));
  dispatch_float("q", in.q, [&]<class T> {
    Scratch scratch(ctx);
    T* panels = scratch.array<T>(omp_get_max_threads() * ForwardPanels<T>::numel(l));
    if (ctx.counts_only()) return;
    T highest = -std::numeric_limits<T>::infinity();
    std::vector<double> share(out.first_token_share.defined() ? tiles.size() : 0);
#pragma omp parallel for schedule(dynamic) reduction(max : highest)
    for (size_t i = 0; i < tiles.size(); ++i) {
      T* own = panels + omp_get_thread_num() * ForwardPanels<T>::numel(l);
      highest = std::max(highest, forward_tile<T>(out, in, l, tiles[i], {own, l}));
      if (!share.empty()) share[i] = first_token_share<T>(out, in, l, tiles[i], segments.valid);
    }
    if (out.score_max.defined()) *out.score_max.data<double>() = highest;
    if (out.first_token_share.defined())
      *out.first_token_share.data<double>() = std::accumulate(share.begin(), share.end(), 0.0) / double(l.Hq);
  });
}

void attention_backward(Context& ctx, AttentionGradients d_in, const Tensor& d_y, const AttentionTensors& in,
                        const AttentionOutputs& out, const Segments& segments) {
  const Layout l(in);
  const int64_t D = segments.num_documents(), kv_width = l.Hkv * l.Dh;
  const DocumentKeys keys(segments);
  std::vector<TileSet> sets;
  std::vector<int64_t> later_begin(D + 1, 0);  // keys of gradients in scratch before those of the document
  for (int64_t document = 0; document < D; ++document) {
    const int64_t num_sets = num_tile_sets(segments, document);
    for (int64_t set = 0; set < num_sets; ++set)
      for (int64_t kv_head = 0; kv_head < l.Hkv; ++kv_head) sets.push_back({document, kv_head, set, num_sets});
    later_begin[document + 1] = later_begin[document] + (num_sets - 1) * keys.count(document);
  }

  dispatch_float("q", in.q, [&]<class T> {
    Scratch scratch(ctx);
    T* panels = scratch.array<T>(omp_get_max_threads() * BackwardPanels<T>::numel(l));
    // d_k and d_v of the first set are formed in the outputs, those of the later ones here.
    T *later_d_k = scratch.array<T>(later_begin[D] * kv_width),
      *later_d_v = scratch.array<T>(later_begin[D] * kv_width);
    if (ctx.counts_only()) return;
    T *d_k_data = d_in.k.data<T>(), *d_v_data = d_in.v.data<T>();
    auto later_at = [&](int64_t document, int64_t set) {
      return (later_begin[document] + (set - 1) * keys.count(document)) * kv_width;
    };

#pragma omp parallel for schedule(dynamic)
    for (size_t i = 0; i < sets.size(); ++i) {
      const auto [document, kv_head, set, num_sets] = sets[i];
      const int64_t first_at = keys.begin(document) * kv_width;
      T* d_k = set == 0 ? d_k_data + first_at : later_d_k + later_at(document, set);
      T* d_v = set == 0 ? d_v_data + first_at : later_d_v + later_at(document, set);
      for (int64_t n = 0; n < keys.count(document); ++n) {
        std::fill_n(d_k + l.kv_at(n, kv_head), l.Dh, T(0));
        std::fill_n(d_v + l.kv_at(n, kv_head), l.Dh, T(0));
      }
      for (int64_t tile = set; tile < num_query_tiles(segments, document); tile += num_sets)
        backward_tile<T>(d_in, d_k, d_v, d_y, in, out, l, query_tile(segments, keys, document, kv_head, tile),
                         {panels + omp_get_thread_num() * BackwardPanels<T>::numel(l), l});
    }

    if (later_begin[D] == 0) return;
#pragma omp parallel
    for (int64_t document = 0; document < D; ++document) {
      const int64_t numel = keys.count(document) * kv_width, first_at = keys.begin(document) * kv_width;
      for (int64_t set = 1; set < num_tile_sets(segments, document); ++set) {
        const T *later_k = later_d_k + later_at(document, set), *later_v = later_d_v + later_at(document, set);
#pragma omp for simd schedule(static) nowait  // a static schedule gives an element to the same thread in every set
        for (int64_t i = 0; i < numel; ++i) {
          d_k_data[first_at + i] += later_k[i];
          d_v_data[first_at + i] += later_v[i];
        }
      }
    }
  });
}

}  // namespace braid::cpu
