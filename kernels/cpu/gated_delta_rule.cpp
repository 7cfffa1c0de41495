#include "kernels/gated_delta_rule.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "kernels/core/copy.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/vector_math.h"

// Within a chunk of n tokens, with gamma the running sum of log_decay from the start of the chunk, Gamma its last
// value, D_ij = exp(gamma_i - gamma_j) for i >= j and 0 above, B = diag(beta), S0 the state before the chunk:
//   delta = Tm B (V - diag(e^gamma) K S0),   Tm = D o T,   T = (I + strictLower(B K K^T))^-1
//   O     = s diag(e^gamma) Q S0 + P delta,  P  = s D o lower(Q K^T)
//   S     = e^Gamma S0 + K^T diag(e^(Gamma - gamma)) delta
// T does not see the decay, so nothing in the triangular solve can underflow or grow, whatever the gates do.
// Backward differentiates Tm^-1 delta = B (V - diag(e^gamma) K S0) with Tm^-1 = I + D o strictLower(B K K^T), so that
// the gradient of Tm itself, and two products of three (n, n) matrices for it, are never needed.
namespace braid::cpu {
namespace {

constexpr int64_t kChunk = kDeltaRuleChunk;  // also the row stride of (n, n) matrices
constexpr int64_t kBlock = 16;

// Columns of row i of a lower triangular (n, n) matrix, up to the end of the block of columns that holds the diagonal:
// whole vectors, at the price of a few elements above the diagonal, where D is 0.
int64_t row_width(int64_t i, int64_t n) { return std::min((i / kBlock + 1) * kBlock, n); }

// The value heads of one key head lie side by side in v and o: they are the W columns of one matrix.
template <class T>
struct Inputs {
  explicit Inputs(const DeltaRuleInputs& in)
      : q(in.q.data<T>()),
        k(in.k.data<T>()),
        v(in.v.data<T>()),
        beta(in.beta.data<T>()),
        log_decay(in.log_decay.data<T>()),
        Hk(in.q.dim(1)),
        Hv(in.v.dim(1)),
        Dk(in.q.dim(2)),
        Dv(in.v.dim(2)),
        G(Hv / Hk),
        W(G * Dv),
        s(1 / std::sqrt(T(Dk))) {}
  const T *q, *k, *v, *beta, *log_decay;
  int64_t Hk, Hv, Dk, Dv;
  int64_t G;  // value heads of a key head
  int64_t W;  // G * Dv
  T s;
};

// One document of one key head. Tasks are independent, and what the value heads of a key head add to the gradients of q
// and k is summed inside one task.
struct Task {
  int64_t begin, end, key_head;
  // Rows of the batch that start and end with it, where states (or gradients of states) come or go there.
  int64_t initial_row = -1, final_row = -1;
  int64_t num_chunks() const { return (end - begin + kChunk - 1) / kChunk; }
};

std::vector<Task> tasks_of(const Segments& segments, int64_t key_heads, bool initial, bool final) {
  std::vector<Task> tasks;
  const int64_t T = segments.row_tokens;
  for (int64_t d = 0; d < segments.num_documents(); ++d) {
    const int64_t begin = segments.begin(d), end = segments.end(d);
    const int64_t initial_row = initial && begin % T == 0 ? begin / T : -1;
    const int64_t final_row = final && end % T == 0 ? end / T - 1 : -1;
    for (int64_t h = 0; h < key_heads; ++h) tasks.push_back({begin, end, h, initial_row, final_row});
  }
  return tasks;
}

// The states (Dk, W) of a key head's value heads, side by side, from or to a row of `states` (B, Hv, Dk, Dv).
template <class T, class In, class Copy>
void for_each_state_row(const In& in, int64_t row, int64_t key_head, Copy&& copy) {
  for (int64_t r = 0; r < in.G; ++r)
    for (int64_t a = 0; a < in.Dk; ++a)
      copy(a * in.W + r * in.Dv, ((row * in.Hv + key_head * in.G + r) * in.Dk + a) * in.Dv);
}
// Zeros where there is no such row, or nothing is defined.
template <class T, class In>
void load_states(T* state, const Tensor& states, int64_t row, const In& in, int64_t key_head) {
  if (row < 0 || !states.defined()) {
    std::fill_n(state, in.Dk * in.W, T(0));
    return;
  }
  for_each_state_row<T>(in, row, key_head, [&](int64_t here, int64_t there) {
    std::copy_n(states.data<T>() + there, in.Dv, state + here);
  });
}
template <class T, class In>
void store_states(Tensor states, const T* state, int64_t row, const In& in, int64_t key_head) {
  if (row < 0 || !states.defined()) return;
  for_each_state_row<T>(in, row, key_head, [&](int64_t here, int64_t there) {
    std::copy_n(state + here, in.Dv, states.data<T>() + there);
  });
}

// exp(x) of a sum of log-decays. What is left of less than 1e-26 counts as forgotten: numbers below the smallest normal
// one, to which such decays soon lead, make every multiply-add that meets them a hundred times slower.
template <class T>
T decay_of(T x) {
  return x < T(-60) ? T(0) : fast_exp(x);
}

// c (M, N) = op(a) op(b), where one factor is known to be zero at an end of the document.
template <class T>
void product_or_zero(bool is_zero, GemmShape shape, GemmMatrix<T> a, GemmMatrix<T> b, T* c) {
  if (is_zero) std::fill_n(c, shape.m * shape.n, T(0));
  else gemm(shape, T(1), a, b, T(0), c, shape.n);
}

// Products with lower triangular (n, n) matrices. Their upper right quarter is neither read nor written.
int64_t half_of(int64_t n) { return std::min(n, kChunk / 2); }

// c (n, n) = lower(a b^T), a and b (n, K)
template <class T>
void lower_product(int64_t n, int64_t K, GemmMatrix<T> a, GemmMatrix<T> b, T* c) {
  const int64_t half = half_of(n);
  b.transposed = true;
  gemm({half, half, K}, T(1), a, b, T(0), c, kChunk);
  gemm({n - half, n, K}, T(1), {a.data + half * a.stride, a.stride}, b, T(0), c + half * kChunk, kChunk);
}

// c (n, N) = l b + beta c
template <class T>
void lower_times(int64_t n, int64_t N, const T* l, GemmMatrix<T> b, T beta, T* c, int64_t stride) {
  const int64_t half = half_of(n);
  gemm({half, N, half}, T(1), {l, kChunk}, b, beta, c, stride);
  gemm({n - half, N, n}, T(1), {l + half * kChunk, kChunk}, b, beta, c + half * stride, stride);
}

// c (n, N) = l^T b + beta c
template <class T>
void lower_transposed_times(int64_t n, int64_t N, const T* l, GemmMatrix<T> b, T beta, T* c, int64_t stride) {
  const int64_t half = half_of(n);
  gemm({half, N, n}, T(1), {l, kChunk, true}, b, beta, c, stride);
  gemm({n - half, N, n - half}, T(1), {l + half * kChunk + half, kChunk, true}, {b.data + half * b.stride, b.stride},
       beta, c + half * stride, stride);
}

// t = (I + strictLower(diag(beta) kk))^-1 by forward substitution, two rows over 32 columns at a time: that many sums
// fit in registers and hide each other's latency. For odd n a row too many is computed; the buffers have room for it
// and nothing reads it.
template <class T>
void invert_unit_lower(T* t, const T* kk, const T* beta, int64_t n) {
  constexpr int64_t kRows = 2, kColumns = 32;
  for (int64_t column = 0; column < n; column += kColumns) {
    for (int64_t i = column; i < n; i += kRows) {
      T sum[kRows][kColumns] = {};
      for (int64_t j = column; j < i; ++j) {
        for (int64_t r = 0; r < kRows; ++r) {
          const T m = kk[(i + r) * kChunk + j];
          for (int64_t c = 0; c < kColumns; ++c) sum[r][c] -= m * t[j * kChunk + column + c];
        }
      }
      for (int64_t r = 0; r < kRows; ++r) {
        for (int64_t q = 0; q < r; ++q)
          for (int64_t c = 0; c < kColumns; ++c) sum[r][c] -= kk[(i + r) * kChunk + i + q] * sum[q][c];
        for (int64_t c = 0; c < kColumns; ++c) sum[r][c] *= beta[i + r];
        if (i + r < column + kColumns) sum[r][i + r - column] = 1;
        std::copy_n(sum[r], kColumns, t + (i + r) * kChunk + column);
      }
    }
  }
}

// What both directions compute of one chunk: for a key head, then for one of its value heads at a time. One per thread.
template <class T>
struct Chunk {
  enum class Load { kKeys, kKeysAndQueries };

  Chunk(Scratch& scratch, const Inputs<T>& in)
      : in(in),
        kq(scratch.array<T>(2 * kChunk * in.Dk)),
        ks(scratch.array<T>(2 * kChunk * in.W)),
        delta(scratch.array<T>(kChunk * in.W)),
        scaled(scratch.array<T>(kChunk * in.W)),
        kk(scratch.array<T>(kChunk * kChunk)),
        qk(scratch.array<T>(kChunk * kChunk)),
        decay(scratch.array<T>(kChunk * kChunk)),
        tm(scratch.array<T>(kChunk * kChunk)),
        p(scratch.array<T>(kChunk * kChunk)),
        beta(scratch.array<T>(kChunk)),
        gamma(scratch.array<T>(kChunk)),
        e_gamma(scratch.array<T>(kChunk)),
        e_rest(scratch.array<T>(kChunk)),
        rhs(scratch.array<T>(kChunk * in.Dv)) {
    if (scratch.counts_only()) return;
    std::fill_n(p, kChunk * kChunk, T(0));  // what lies beyond row_width stays 0
  }

  const T* keys() const { return kq; }
  const T* queries() const { return kq + n * in.Dk; }
  const T* qs() const { return ks + n * in.W; }
  const T* value(int64_t i, int64_t r) const { return in.v + ((begin + i) * in.Hv + h * in.G + r) * in.Dv; }

  // The chunk of `task` that starts at token `first`, with the state before it, which is zero in the first chunk of a
  // document that starts here, or if it is null.
  void load(const Task& task, int64_t first, const T* state, Load what) {
    begin = first;
    n = std::min(kChunk, task.end - begin);
    h = task.key_head;
    const int64_t num_rows = what == Load::kKeys ? n : 2 * n;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t row = ((begin + i) * in.Hk + h) * in.Dk;
      std::copy_n(in.k + row, in.Dk, kq + i * in.Dk);
      if (what == Load::kKeysAndQueries) std::copy_n(in.q + row, in.Dk, kq + (n + i) * in.Dk);
    }
    lower_product<T>(n, in.Dk, {keys(), in.Dk}, {keys(), in.Dk}, kk);
    if (what == Load::kKeysAndQueries) lower_product<T>(n, in.Dk, {queries(), in.Dk}, {keys(), in.Dk}, qk);
    product_or_zero<T>(!state || (begin == task.begin && task.initial_row < 0), {num_rows, in.W, in.Dk}, {kq, in.Dk},
                       {state, in.W}, ks);
  }

  // Gates, D, Tm, delta and scaled delta of value head r of the key head.
  void solve(int64_t r) {
    T sum = 0;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t gate = (begin + i) * in.Hv + h * in.G + r;
      beta[i] = in.beta[gate];
      gamma[i] = sum += in.log_decay[gate];
    }
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      e_gamma[i] = decay_of(gamma[i]);
      e_rest[i] = decay_of(sum - gamma[i]);
    }
    e_last = e_gamma[n - 1];
    invert_unit_lower(tm, kk, beta, n);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t width = row_width(i, n);
      const T *gammas = gamma, gamma_i = gamma[i];
      T *decay_row = decay + i * kChunk, *tm_row = tm + i * kChunk;
#pragma omp simd
      for (int64_t j = 0; j < width; ++j) {
        // Above the diagonal the exponent is positive and may overflow: masked before exp, not after.
        decay_row[j] = decay_of(j <= i ? gamma_i - gammas[j] : -std::numeric_limits<T>::infinity());
        tm_row[j] *= decay_row[j];
      }
      const T *v_row = value(i, r), *ks_row = ks + i * in.W + r * in.Dv, beta_i = beta[i], e_gamma_i = e_gamma[i];
      T* rhs_row = rhs + i * in.Dv;
#pragma omp simd
      for (int64_t c = 0; c < in.Dv; ++c) rhs_row[c] = beta_i * (v_row[c] - e_gamma_i * ks_row[c]);
    }
    lower_times<T>(n, in.Dv, tm, {rhs, in.Dv}, T(0), delta + r * in.Dv, in.W);
    for (int64_t i = 0; i < n; ++i) {
      const T *delta_row = delta + i * in.W + r * in.Dv, e_rest_i = e_rest[i];
      T* scaled_row = scaled + i * in.W + r * in.Dv;
#pragma omp simd
      for (int64_t c = 0; c < in.Dv; ++c) scaled_row[c] = e_rest_i * delta_row[c];
    }
  }

  // P of the value head that was solved last.
  void weigh_outputs() {
    for (int64_t i = 0; i < n; ++i) {
      const int64_t width = row_width(i, n);
      const T *qk_row = qk + i * kChunk, *decay_row = decay + i * kChunk, s = in.s;
      T* p_row = p + i * kChunk;
#pragma omp simd
      for (int64_t j = 0; j < width; ++j) p_row[j] = s * qk_row[j] * decay_row[j];
    }
  }

  // next columns of the value head that was solved last = e^Gamma state
  void decay_state(T* next, const T* state, int64_t r) const {
    const T e = e_last;
    for (int64_t a = 0; a < in.Dk; ++a) {
      const T* row = state + a * in.W + r * in.Dv;
      T* next_row = next + a * in.W + r * in.Dv;
#pragma omp simd
      for (int64_t c = 0; c < in.Dv; ++c) next_row[c] = e * row[c];
    }
  }
  // next += K^T diag(e^(Gamma - gamma)) delta, once every value head is solved and has decayed its state
  void write_to_state(T* next) const {
    gemm({in.Dk, in.W, n}, T(1), {keys(), in.Dk, true}, {scaled, in.W}, T(1), next, in.W);
  }

  const Inputs<T>& in;
  int64_t begin = 0, n = 0, h = 0;
  T* kq;         // (2n, Dk)     K over Q
  T* ks;         // (2n, W)      K S0 over Q S0
  T* delta;      // (n, W)
  T* scaled;     // (n, W)       diag(e^(Gamma - gamma)) delta
  T* kk;         // (n, kChunk)  K K^T
  T* qk;         // (n, kChunk)  Q K^T
  T* decay;      // (n, kChunk)  D; this and what follows for the value head in work
  T* tm;         // (n, kChunk)  Tm
  T* p;          // (n, kChunk)  P
  T* beta;       // (n)
  T* gamma;      // (n)
  T* e_gamma;    // (n)          exp(gamma)
  T* e_rest;     // (n)          exp(Gamma - gamma)
  T e_last = 0;  // exp(Gamma)
  T* rhs;        // (n, Dv)      B (V - diag(e^gamma) K S0)
};

template <class T>
struct ForwardWork {
  ForwardWork(Scratch& scratch, const Inputs<T>& in) : chunk(scratch, in), state(scratch.array<T>(in.Dk * in.W)) {}
  Chunk<T> chunk;
  T* state;  // (Dk, W)
};

// Without o only the final states are wanted.
template <class T>
void forward(T* o, const DeltaRuleStates& states, const Inputs<T>& in, const Task& task, ForwardWork<T>& w) {
  const int64_t Dv = in.Dv, W = in.W, stride = in.Hv * Dv;
  if (!o && task.final_row < 0) return;
  Chunk<T>& chunk = w.chunk;
  load_states(w.state, states.initial, task.initial_row, in, task.key_head);
  for (int64_t begin = task.begin; begin < task.end; begin += kChunk) {
    chunk.load(task, begin, w.state, o ? Chunk<T>::Load::kKeysAndQueries : Chunk<T>::Load::kKeys);
    const int64_t n = chunk.n;
    for (int64_t r = 0; r < in.G; ++r) {
      chunk.solve(r);
      if (!o) {
        chunk.decay_state(w.state, w.state, r);
        continue;
      }
      chunk.weigh_outputs();
      T* o_head = o + begin * stride + (task.key_head * in.G + r) * Dv;
      for (int64_t i = 0; i < n; ++i) {
        const T *qs_row = chunk.qs() + i * W + r * Dv, factor = in.s * chunk.e_gamma[i];
        T* o_row = o_head + i * stride;
#pragma omp simd
        for (int64_t c = 0; c < Dv; ++c) o_row[c] = factor * qs_row[c];
      }
      lower_times<T>(n, Dv, chunk.p, {chunk.delta + r * Dv, W}, T(1), o_head, stride);
      chunk.decay_state(w.state, w.state, r);
    }
    if (begin + n < task.end || task.final_row >= 0) chunk.write_to_state(w.state);
  }
  store_states(states.final, w.state, task.final_row, in, task.key_head);
}

template <class T>
struct Gradients {
  T *q, *k, *v, *beta, *log_decay;
};

template <class T>
struct BackwardWork {
  BackwardWork(Scratch& scratch, const Inputs<T>& in, int64_t max_chunks)
      : chunk(scratch, in),
        states(scratch.array<T>(max_chunks * in.Dk * in.W)),
        d_state(scratch.array<T>(in.Dk * in.W)),
        d_state_before(scratch.array<T>(in.Dk * in.W)),
        k_d_state(scratch.array<T>(kChunk * in.W)),
        d_ks(scratch.array<T>(2 * kChunk * in.W)),
        d_kk(scratch.array<T>(kChunk * kChunk)),
        d_qk(scratch.array<T>(kChunk * kChunk)),
        d_kq(scratch.array<T>(2 * kChunk * in.Dk)),
        d_delta(scratch.array<T>(kChunk * in.Dv)),
        y(scratch.array<T>(kChunk * in.Dv)),
        y_delta(scratch.array<T>(kChunk * kChunk)),
        d_p(scratch.array<T>(kChunk * kChunk)),
        d_gamma(scratch.array<T>(kChunk)) {}
  Chunk<T> chunk;
  T* states;          // (num_chunks, Dk, W)  S0 of every chunk
  T* d_state;         // (Dk, W)              gradient of the state after the chunk
  T* d_state_before;  // (Dk, W)              gradient of S0
  T* k_d_state;       // (n, W)               K d_state
  T* d_ks;            // (2n, W)              gradient of K S0 over that of Q S0
  T* d_kk;            // (n, kChunk)          gradient of strictLower(K K^T)
  T* d_qk;            // (n, kChunk)          gradient of lower(Q K^T)
  T* d_kq;            // (2n, Dk)             gradient of K over that of Q
  T* d_delta;         // (n, Dv)              this and what follows for the value head in work
  T* y;               // (n, Dv)              Tm^T d_delta, the gradient of B (V - diag(e^gamma) K S0)
  T* y_delta;         // (n, kChunk)          lower(y delta^T), minus the gradient of Tm^-1
  T* d_p;             // (n, kChunk)
  T* d_gamma;         // (n)
};

// S0 of every chunk of the task.
template <class T>
void recompute_states(const Tensor& initial, const Inputs<T>& in, const Task& task, BackwardWork<T>& w) {
  Chunk<T>& chunk = w.chunk;
  T* state = w.states;
  load_states(state, initial, task.initial_row, in, task.key_head);
  for (int64_t begin = task.begin; begin + kChunk < task.end; begin += kChunk) {
    T* next = state + in.Dk * in.W;
    chunk.load(task, begin, state, Chunk<T>::Load::kKeys);
    for (int64_t r = 0; r < in.G; ++r) {
      chunk.solve(r);
      chunk.decay_state(next, state, r);
    }
    chunk.write_to_state(next);
    state = next;
  }
}

// d_delta and y of value head r, which was solved and weighed last.   d_o_head: of the chunk's first token and that
// head
template <class T>
void form_y(const T* d_o_head, int64_t r, BackwardWork<T>& w) {
  const Chunk<T>& chunk = w.chunk;
  const int64_t n = chunk.n, Dv = chunk.in.Dv, stride = chunk.in.Hv * Dv;
  for (int64_t i = 0; i < n; ++i) {
    const T *row = w.k_d_state + i * chunk.in.W + r * Dv, e_rest = chunk.e_rest[i];
    T* d_delta_row = w.d_delta + i * Dv;
#pragma omp simd
    for (int64_t c = 0; c < Dv; ++c) d_delta_row[c] = e_rest * row[c];
  }
  lower_transposed_times<T>(n, Dv, chunk.p, {d_o_head, stride}, T(1), w.d_delta, Dv);
  lower_transposed_times<T>(n, Dv, chunk.tm, {w.d_delta, Dv}, T(0), w.y, Dv);
}

// What value head r contributes in a chunk. Writes the gradients of its own inputs and its columns of d_ks, adds to
// d_kk and d_qk, and starts its columns of d_state_before.
template <class T>
void backward_value_head(const Gradients<T>& d, const T* d_o, const Inputs<T>& in, const T* state, int64_t r,
                         BackwardWork<T>& w) {
  Chunk<T>& chunk = w.chunk;
  chunk.solve(r);
  chunk.weigh_outputs();
  const int64_t n = chunk.n, Dk = in.Dk, Dv = in.Dv, W = in.W, stride = in.Hv * Dv;
  const int64_t column = r * Dv, head = chunk.begin * in.Hv + chunk.h * in.G + r;
  const T* d_o_head = d_o + head * Dv;

  form_y(d_o_head, r, w);
  lower_product<T>(n, Dv, {w.y, Dv}, {chunk.delta + column, W}, w.y_delta);
  lower_product<T>(n, Dv, {d_o_head, stride}, {chunk.delta + column, W}, w.d_p);

  chunk.decay_state(w.d_state_before, w.d_state, r);
  T d_last = 0;  // gradient of Gamma
  for (int64_t a = 0; a < Dk; ++a) {
    const T *state_row = state + a * W + column, *d_row = w.d_state_before + a * W + column;
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < Dv; ++c) sum += d_row[c] * state_row[c];
    d_last += sum;
  }

  T* d_gamma = w.d_gamma;
  std::fill_n(d_gamma, kChunk, T(0));
  for (int64_t i = 0; i < n; ++i) {
    const T s = in.s, beta = chunk.beta[i], e_gamma = chunk.e_gamma[i];

    const int64_t row = i * W + column;
    const T *v_row = chunk.value(i, r), *y_row = w.y + i * Dv, *d_o_row = d_o_head + i * stride;
    const T *ks_row = chunk.ks + row, *qs_row = chunk.qs() + row, *scaled_row = chunk.scaled + row;
    const T* k_d_state_row = w.k_d_state + row;
    T *d_v_row = d.v + head * Dv + i * stride, *d_ks_row = w.d_ks + row, *d_qs_row = d_ks_row + n * W;
    T d_beta = 0, d_read = 0, d_output = 0, d_write = 0;
#pragma omp simd reduction(+ : d_beta, d_read, d_output, d_write)
    for (int64_t c = 0; c < Dv; ++c) {
      const T read = e_gamma * ks_row[c], d_v = beta * y_row[c], d_qs = s * e_gamma * d_o_row[c];
      d_v_row[c] = d_v;
      d_ks_row[c] = -e_gamma * d_v;
      d_qs_row[c] = d_qs;
      d_beta += y_row[c] * (v_row[c] - read);
      d_read += d_v * read;
      d_output += d_qs * qs_row[c];
      d_write += scaled_row[c] * k_d_state_row[c];
    }
    d_last += d_write;

    // Through Tm^-1, whose diagonal is constant, and through P.
    const int64_t width = row_width(i, n);
    w.y_delta[i * kChunk + i] = 0;
    const T *y_delta_row = w.y_delta + i * kChunk, *d_p_row = w.d_p + i * kChunk;
    const T *decay_row = chunk.decay + i * kChunk, *kk_row = chunk.kk + i * kChunk, *qk_row = chunk.qk + i * kChunk;
    T *d_kk_row = w.d_kk + i * kChunk, *d_qk_row = w.d_qk + i * kChunk;
    T sum_m = 0, sum_p = 0;
#pragma omp simd reduction(+ : sum_m, sum_p)
    for (int64_t j = 0; j < width; ++j) {
      const T d_m = -y_delta_row[j] * decay_row[j], d_s = s * d_p_row[j] * decay_row[j];
      const T m = d_m * kk_row[j], p = d_s * qk_row[j];
      d_kk_row[j] += beta * d_m;
      d_qk_row[j] += d_s;
      d_gamma[j] -= beta * m + p;
      sum_m += m;
      sum_p += p;
    }
    d_gamma[i] += beta * sum_m + sum_p + d_output - d_read - d_write;
    d.beta[head + i * in.Hv] = d_beta + sum_m;
  }
  d_gamma[n - 1] += d_last;
  T sum = 0;
  for (int64_t i = n - 1; i >= 0; --i) d.log_decay[head + i * in.Hv] = sum += d_gamma[i];
}

template <class T>
void backward(const Gradients<T>& d, const T* d_o, const DeltaRuleStateGradients& states, const Inputs<T>& in,
              const Task& task, BackwardWork<T>& w) {
  const int64_t Dk = in.Dk, W = in.W;
  Chunk<T>& chunk = w.chunk;
  recompute_states(states.initial, in, task, w);
  load_states(w.d_state, states.d_final, task.final_row, in, task.key_head);
  for (int64_t c = task.num_chunks() - 1; c >= 0; --c) {
    const int64_t begin = task.begin + c * kChunk;
    const T* state = w.states + c * Dk * W;
    chunk.load(task, begin, state, Chunk<T>::Load::kKeysAndQueries);
    const int64_t n = chunk.n;
    // Nothing comes from before the first chunk, nothing goes on behind the last.
    const bool is_first = c == 0 && task.initial_row < 0, is_last = begin + n == task.end && task.final_row < 0;
    product_or_zero<T>(is_last, {n, W, Dk}, {chunk.keys(), Dk}, {w.d_state, W}, w.k_d_state);
    std::fill_n(w.d_kk, n * kChunk, T(0));
    std::fill_n(w.d_qk, n * kChunk, T(0));
    for (int64_t r = 0; r < in.G; ++r) backward_value_head(d, d_o, in, state, r, w);

    T *d_k = w.d_kq, *d_q = d_k + n * Dk;
    product_or_zero<T>(is_first, {2 * n, Dk, W}, {w.d_ks, W}, {state, W, true}, w.d_kq);
    if (!is_last) gemm({n, Dk, W}, T(1), {chunk.scaled, W}, {w.d_state, W, true}, T(1), d_k, Dk);
    lower_times<T>(n, Dk, w.d_kk, {chunk.keys(), Dk}, T(1), d_k, Dk);
    lower_transposed_times<T>(n, Dk, w.d_kk, {chunk.keys(), Dk}, T(1), d_k, Dk);
    lower_transposed_times<T>(n, Dk, w.d_qk, {chunk.queries(), Dk}, T(1), d_k, Dk);
    lower_times<T>(n, Dk, w.d_qk, {chunk.keys(), Dk}, T(1), d_q, Dk);
    if (!is_first) gemm({Dk, W, 2 * n}, T(1), {chunk.kq, Dk, true}, {w.d_ks, W}, T(1), w.d_state_before, W);
    std::swap(w.d_state, w.d_state_before);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t row = ((begin + i) * in.Hk + task.key_head) * Dk;
      std::copy_n(d_k + i * Dk, Dk, d.k + row);
      std::copy_n(d_q + i * Dk, Dk, d.q + row);
    }
  }
  store_states(states.d_initial, w.d_state, task.initial_row, in, task.key_head);
}

// The gradient of the initial state alone, which sees neither states nor values.
template <class T>
void backward_state(const T* d_o, const DeltaRuleStateGradients& states, const Inputs<T>& in, const Task& task,
                    BackwardWork<T>& w) {
  if (task.initial_row < 0) return;
  const int64_t Dk = in.Dk, Dv = in.Dv, W = in.W, stride = in.Hv * Dv;
  Chunk<T>& chunk = w.chunk;
  load_states(w.d_state, states.d_final, task.final_row, in, task.key_head);
  for (int64_t c = task.num_chunks() - 1; c >= 0; --c) {
    chunk.load(task, task.begin + c * kChunk, nullptr, Chunk<T>::Load::kKeysAndQueries);
    const int64_t n = chunk.n;
    gemm({n, W, Dk}, T(1), {chunk.keys(), Dk}, {w.d_state, W}, T(0), w.k_d_state, W);
    for (int64_t r = 0; r < in.G; ++r) {
      chunk.solve(r);
      chunk.weigh_outputs();
      const T* d_o_head = d_o + chunk.begin * stride + (task.key_head * in.G + r) * Dv;
      form_y(d_o_head, r, w);
      chunk.decay_state(w.d_state_before, w.d_state, r);
      for (int64_t i = 0; i < n; ++i) {
        const T e_gamma = chunk.e_gamma[i], beta = chunk.beta[i], s = in.s;
        const T *y_row = w.y + i * Dv, *d_o_row = d_o_head + i * stride;
        T *d_ks_row = w.d_ks + i * W + r * Dv, *d_qs_row = d_ks_row + n * W;
#pragma omp simd
        for (int64_t v = 0; v < Dv; ++v) {
          d_ks_row[v] = -e_gamma * beta * y_row[v];
          d_qs_row[v] = s * e_gamma * d_o_row[v];
        }
      }
    }
    gemm({Dk, W, 2 * n}, T(1), {chunk.kq, Dk, true}, {w.d_ks, W}, T(1), w.d_state_before, W);
    std::swap(w.d_state, w.d_state_before);
  }
  store_states(states.d_initial, w.d_state, task.initial_row, in, task.key_head);
}

}  // namespace

void gated_delta_rule_forward(Context& ctx, Tensor o, const DeltaRuleInputs& inputs, const Segments& segments,
                              DeltaRuleStates states) {
  const std::vector<Task> tasks = tasks_of(segments, inputs.q.dim(1), states.initial.defined(), states.final.defined());
  dispatch_float("q", inputs.q, [&]<class T> {
    const Inputs<T> in(inputs);
    T* o_data = o.defined() ? o.data<T>() : nullptr;
    Scratch scratch(ctx);
    std::vector<ForwardWork<T>> work;
    for (int thread = 0; thread < omp_get_max_threads(); ++thread) work.emplace_back(scratch, in);
    if (ctx.counts_only()) return;
#pragma omp parallel for schedule(dynamic)
    for (size_t i = 0; i < tasks.size(); ++i) forward(o_data, states, in, tasks[i], work[omp_get_thread_num()]);
  });
}

void gated_delta_rule_backward(Context& ctx, DeltaRuleInputs d_in, const Tensor& d_o, const DeltaRuleInputs& inputs,
                               const Segments& segments, DeltaRuleStateGradients states) {
  const std::vector<Task> tasks = tasks_of(
      segments, inputs.q.dim(1), states.initial.defined() || states.d_initial.defined(), states.d_final.defined());
  int64_t max_chunks = 0;
  const bool state_alone = !d_in.q.defined();
  for (const Task& task : tasks) max_chunks = std::max(max_chunks, state_alone ? 0 : task.num_chunks());
  dispatch_float("q", inputs.q, [&]<class T> {
    const Inputs<T> in(inputs);
    Gradients<T> d = {};
    if (!state_alone)
      d = {d_in.q.data<T>(), d_in.k.data<T>(), d_in.v.data<T>(), d_in.beta.data<T>(), d_in.log_decay.data<T>()};
    const T* d_o_data = d_o.data<T>();
    Scratch scratch(ctx);
    std::vector<BackwardWork<T>> work;
    for (int thread = 0; thread < omp_get_max_threads(); ++thread) work.emplace_back(scratch, in, max_chunks);
    if (ctx.counts_only()) return;
#pragma omp parallel for schedule(dynamic)
    for (size_t i = 0; i < tasks.size(); ++i) {
      BackwardWork<T>& own = work[omp_get_thread_num()];
      if (state_alone) backward_state(d_o_data, states, in, tasks[i], own);
      else backward(d, d_o_data, states, in, tasks[i], own);
    }
  });
}

void gated_delta_rule_transition(Context& ctx, Tensor transition, const DeltaRuleInputs& in, const Segments& segments) {
  // With nothing to write, the rule only passes on: the identity becomes A.
  const int64_t N = in.q.dim(0), B = transition.dim(0), Hv = transition.dim(1), Dk = transition.dim(2);
  Scratch scratch(ctx);
  DeltaRuleInputs passing = in;
  passing.v = scratch.tensor({N, Hv, Dk}, in.v.dtype());
  fill_zero(ctx, passing.v);
  fill_zero(ctx, transition);
  dispatch_float("transition", transition, [&]<class T> {
    if (ctx.counts_only()) return;
    T* data = transition.data<T>();
    for (int64_t row = 0; row < B; ++row) {
      if (segments.before(row) == 0 || segments.behind(row) == 0) continue;
      for (int64_t at = row * Hv * Dk; at < (row + 1) * Hv * Dk; ++at) data[at * Dk + at % Dk] = 1;
    }
  });
  cpu::gated_delta_rule_forward(ctx, {}, passing, segments, {transition, transition});
}

void carry_states(Context& ctx, Tensor states, const Tensor& transitions, const Tensor& contributions,
                  const std::vector<std::vector<int64_t>>& ways, StateDirection direction) {
  const int64_t Hv = states.dim(1), Dk = states.dim(2), Dv = states.dim(3), size = Dk * Dv;
  dispatch_float("states", states, [&]<class T> {
    Scratch scratch(ctx);
    T* const next = scratch.array<T>(states.numel());
    if (ctx.counts_only()) return;
#pragma omp parallel for collapse(2) schedule(dynamic)
    for (size_t row = 0; row < ways.size(); ++row)
      for (int64_t head = 0; head < Hv; ++head) {
        const int64_t place = static_cast<int64_t>(row) * Hv + head;
        T *const now = states.data<T>() + place * size, *const sum = next + place * size;
        std::fill_n(now, size, T(0));
        for (const int64_t part : ways[row]) {
          const T* a = transitions.data<T>() + (part * Hv + head) * Dk * Dk;
          std::copy_n(contributions.data<T>() + (part * Hv + head) * size, size, sum);
          gemm({Dk, Dv, Dk}, T(1), {a, Dk, direction == StateDirection::kBackward}, {now, Dv}, T(1), sum, Dv);
          std::copy_n(sum, size, now);
        }
      }
  });
}

}  // namespace braid::cpu
