#pragma once

#include "kernels/cuda/gated_delta_rule_states.cuh"
#include "kernels/gated_delta_rule.h"

// The gated delta rule for every dtype and head size, all in fp32: kernels/cpu/gated_delta_rule.cpp with the threads of
// a block in place of its matrix products. Blocks take turns at documents and heads; what one works on lies in scratch
// of its own, and __syncthreads orders what its threads leave there for each other.
namespace braid::cuda::delta_rule_any {

inline constexpr int kChunk = kDeltaRuleChunk;
inline constexpr int kThreads = 256;

template <class X>
struct Inputs {
  const X *q, *k, *v;
  const float *beta, *log_decay;
  const int32_t *chunk_begin, *first_chunk;  // Segments::Tables
  int num_documents, Hk, Hv, Dk, Dv;
  float s;

  __device__ int group() const { return Hv / Hk; }
  __device__ int64_t key(int64_t token, int key_head, int a) const { return (token * Hk + key_head) * Dk + a; }
  __device__ int64_t value(int64_t token, int head, int c) const { return (token * Hv + head) * Dv + c; }
};

template <class X>
struct Gradients {
  X *q, *k, *v;
  float *beta, *log_decay;
};

// Scratch of a block.
struct Work {
  float *kk, *tm, *p;    // (kChunk, kChunk)
  float *d_m, *d_s;      // (kChunk, kChunk)  gradients of M and of s Q K^T, times D
  float *rhs, *delta;    // (kChunk, Dv)
  float *ks, *qs, *kds;  // (kChunk, Dv)  K S0, Q S0, K dS
  float *d_delta, *y;    // (kChunk, Dv)
  float *d_k, *d_q;      // (kChunk, Dk)
  float* state;          // (Dk, Dv)          forward
  float* d_state;        // (group, Dk, Dv)   backward

  static constexpr int64_t kSquares = 5;
  static int64_t floats(int64_t Dk, int64_t Dv, int64_t group) {
    return kSquares * kChunk * kChunk + 7 * kChunk * Dv + 2 * kChunk * Dk + (1 + group) * Dk * Dv;
  }
  __device__ Work(float* at, int Dk, int Dv, int group) {
    auto take = [&](int64_t count) {
      float* taken = at;
      at += count;
      return taken;
    };
    for (float** square : {&kk, &tm, &p, &d_m, &d_s}) *square = take(kChunk * kChunk);
    for (float** rows : {&rhs, &delta, &ks, &qs, &kds, &d_delta, &y}) *rows = take(int64_t(kChunk) * Dv);
    for (float** rows : {&d_k, &d_q}) *rows = take(int64_t(kChunk) * Dk);
    state = take(int64_t(Dk) * Dv);
    d_state = take(int64_t(group) * Dk * Dv);
  }
};

struct Gates {
  float beta[kChunk], gamma[kChunk], e_gamma[kChunk], e_rest[kChunk];
};

// put(i, j, sum over k < K of a(i, k) b(k, j)) for i < M, j < N, by all threads of the block, 4 x 4 sums at a time. For
// given M and N a sum belongs to the same thread every time.
template <class A, class B, class Put>
__device__ void block_product(int M, int N, int K, A a, B b, Put put) {
  const int tiles_across = (N + 3) / 4, num_tiles = (M + 3) / 4 * tiles_across;
  for (int tile = threadIdx.x; tile < num_tiles; tile += kThreads) {
    const int i0 = tile / tiles_across * 4, j0 = tile % tiles_across * 4;
    float sum[4][4] = {};
    for (int k = 0; k < K; ++k) {
      float x[4], y[4];
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        x[r] = a(min(i0 + r, M - 1), k);
        y[r] = b(k, min(j0 + r, N - 1));
      }
#pragma unroll
      for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int c = 0; c < 4; ++c) sum[r][c] += x[r] * y[c];
    }
#pragma unroll
    for (int r = 0; r < 4; ++r)
#pragma unroll
      for (int c = 0; c < 4; ++c)
        if (i0 + r < M && j0 + c < N) put(i0 + r, j0 + c, sum[r][c]);
  }
}

// States (Dk, Dv) before the chunks that are not the first of their document. These begin 64 tokens or more apart, so
// their number is bounded by that of tokens.
struct BorderStates {
  float* data;
  static int64_t slots(int64_t num_tokens) { return num_tokens / kChunk; }
  __device__ float* at(int64_t begin, int head, int Hv, int64_t state_size) const {
    return data + ((begin / kChunk - 1) * Hv + head) * state_size;
  }
};

// One chunk of one value head.
template <class X>
struct Chunk {
  const Inputs<X>& in;
  const Work& work;
  Gates& gates;
  int head, key_head;
  int64_t begin;
  int n;

  __device__ float q(int i, int a) const { return static_cast<float>(in.q[in.key(begin + i, key_head, a)]); }
  __device__ float k(int i, int a) const { return static_cast<float>(in.k[in.key(begin + i, key_head, a)]); }
  __device__ float v(int i, int c) const { return static_cast<float>(in.v[in.value(begin + i, head, c)]); }
  __device__ float e_last() const { return gates.e_gamma[n - 1]; }
  __device__ float decay(int i, int j) const { return j <= i ? expf(gates.gamma[i] - gates.gamma[j]) : 0.0f; }

  // Gates, kk, ks, tm, rhs and delta. `state` null for zero.
  __device__ void solve(const float* state) const {
    const int Dk = in.Dk, Dv = in.Dv;
    __syncthreads();  // the chunk before is done with what is overwritten now
    if (threadIdx.x == 0) {
      float sum = 0;
      for (int i = 0; i < n; ++i) gates.gamma[i] = sum += in.log_decay[(begin + i) * in.Hv + head];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += kThreads) {
      gates.beta[i] = in.beta[(begin + i) * in.Hv + head];
      gates.e_gamma[i] = expf(gates.gamma[i]);
      gates.e_rest[i] = expf(gates.gamma[n - 1] - gates.gamma[i]);
    }
    __syncthreads();
    block_product(
        n, n, Dk, [&](int i, int a) { return k(i, a); }, [&](int a, int j) { return k(j, a); },
        [&](int i, int j, float sum) { work.kk[i * kChunk + j] = sum; });
    block_product(
        n, Dv, state ? Dk : 0, [&](int i, int a) { return k(i, a); }, [&](int a, int c) { return state[a * Dv + c]; },
        [&](int i, int c, float sum) {
          work.ks[i * Dv + c] = sum;
          work.rhs[i * Dv + c] = gates.beta[i] * (v(i, c) - gates.e_gamma[i] * sum);
        });
    __syncthreads();
    for (int j = threadIdx.x; j < n; j += kThreads) {  // column j of (I + strictLower(B K K^T))^-1
      for (int i = 0; i < n; ++i) {
        float sum = 0;
        for (int m = j; m < i; ++m) sum += work.kk[i * kChunk + m] * work.tm[m * kChunk + j];
        work.tm[i * kChunk + j] = (i == j ? 1.0f : 0.0f) - gates.beta[i] * sum;
      }
    }
    __syncthreads();
    for (int at = threadIdx.x; at < n * n; at += kThreads) work.tm[at / n * kChunk + at % n] *= decay(at / n, at % n);
    __syncthreads();
    block_product(
        n, Dv, n, [&](int i, int j) { return work.tm[i * kChunk + j]; },
        [&](int j, int c) { return work.rhs[j * Dv + c]; },
        [&](int i, int c, float sum) { work.delta[i * Dv + c] = sum; });
    __syncthreads();
  }

  // p and qs, after solve.
  __device__ void weigh_outputs(const float* state) const {
    const int Dk = in.Dk, Dv = in.Dv;
    block_product(
        n, n, Dk, [&](int i, int a) { return q(i, a); }, [&](int a, int j) { return k(j, a); },
        [&](int i, int j, float sum) { work.p[i * kChunk + j] = in.s * sum * decay(i, j); });
    block_product(
        n, Dv, state ? Dk : 0, [&](int i, int a) { return q(i, a); }, [&](int a, int c) { return state[a * Dv + c]; },
        [&](int i, int c, float sum) { work.qs[i * Dv + c] = sum; });
    __syncthreads();
  }

  // next = e^Gamma state + K^T diag(e^(Gamma - gamma)) delta; may be the same memory.
  __device__ void advance(float* next, const float* state) const {
    const int Dv = in.Dv;
    block_product(
        in.Dk, Dv, n, [&](int a, int i) { return k(i, a); },
        [&](int i, int c) { return gates.e_rest[i] * work.delta[i * Dv + c]; },
        [&](int a, int c, float sum) { next[a * Dv + c] = (state ? e_last() * state[a * Dv + c] : 0.0f) + sum; });
  }
};

// The documents of a value head, one after another. With outputs it writes o; without, the states at borders, where
// these are asked for. Both write the states behind rows.
template <class X, bool kWithOutputs>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(X* o, BorderStates states, RowStates initial, RowStates final, Inputs<X> in, float* scratch,
                   int64_t scratch_floats) {
  __shared__ Gates gates;
  const int Dv = in.Dv, state_size = in.Dk * Dv;
  const Work work(scratch + blockIdx.x * scratch_floats, in.Dk, Dv, in.group());
  for (int64_t task = blockIdx.x; task < int64_t(in.num_documents) * in.Hv; task += gridDim.x) {
    const int document = static_cast<int>(task / in.Hv), head = static_cast<int>(task % in.Hv);
    const int first = in.first_chunk[document], end = in.first_chunk[document + 1];
    const float* state = initial.before(in.chunk_begin[first], head, in.Hv, state_size);
    float* const behind = final.behind(in.chunk_begin[end], head, in.Hv, state_size);
    if (!kWithOutputs && !states.data && !behind) continue;
    for (int c = first; c < end; ++c) {
      const int64_t begin = in.chunk_begin[c], next_begin = in.chunk_begin[c + 1];
      const bool is_last = c + 1 == end;
      if (!kWithOutputs && is_last && !behind) break;
      const Chunk<X> chunk{in, work, gates, head, head / in.group(), begin, static_cast<int>(next_begin - begin)};
      chunk.solve(state);
      if constexpr (kWithOutputs) {
        chunk.weigh_outputs(state);
        block_product(
            chunk.n, Dv, chunk.n, [&](int i, int j) { return work.p[i * kChunk + j]; },
            [&](int j, int v) { return work.delta[j * Dv + v]; },
            [&](int i, int v, float sum) {
              o[in.value(begin + i, head, v)] = static_cast<X>(in.s * gates.e_gamma[i] * work.qs[i * Dv + v] + sum);
            });
      }
      if (is_last && !behind) break;
      float* next = is_last ? behind : states.data ? states.at(next_begin, head, in.Hv, state_size) : work.state;
      chunk.advance(next, state);
      state = next;
    }
  }
}

// Sum over the threads of the block; every thread gets it.
__device__ inline float block_sum(float x) {
  __shared__ float of_warp[kThreads / kWarpSize];
  x = warp_sum(x);
  __syncthreads();
  if (threadIdx.x % kWarpSize == 0) of_warp[threadIdx.x / kWarpSize] = x;
  __syncthreads();
  float sum = 0;
  for (float part : of_warp) sum += part;
  return sum;
}

// What one value head contributes in a chunk: the gradients of its own inputs, its share of work.d_k and work.d_q,
// which the first head of a group starts, and its d_state, which is zero where nothing comes from behind (is_last).
template <class X>
__device__ void backward_value_head(const Gradients<X>& d, const X* d_o, const Chunk<X>& chunk, const float* state,
                                    float* d_state, bool is_last, bool is_first_head, float* d_gamma) {
  const Inputs<X>& in = chunk.in;
  const Work& work = chunk.work;
  const Gates& gates = chunk.gates;
  const int n = chunk.n, Dk = in.Dk, Dv = in.Dv, head = chunk.head;
  const int64_t begin = chunk.begin;
  const float s = in.s;
  auto d_out = [&](int i, int c) { return static_cast<float>(d_o[in.value(begin + i, head, c)]); };

  chunk.solve(state);
  chunk.weigh_outputs(state);
  block_product(
      n, Dv, is_last ? 0 : Dk, [&](int i, int a) { return chunk.k(i, a); },
      [&](int a, int c) { return d_state[a * Dv + c]; }, [&](int i, int c, float sum) { work.kds[i * Dv + c] = sum; });
  __syncthreads();
  block_product(
      n, Dv, n, [&](int j, int i) { return work.p[i * kChunk + j]; }, [&](int i, int c) { return d_out(i, c); },
      [&](int j, int c, float sum) { work.d_delta[j * Dv + c] = gates.e_rest[j] * work.kds[j * Dv + c] + sum; });
  __syncthreads();
  block_product(
      n, Dv, n, [&](int j, int i) { return work.tm[i * kChunk + j]; },
      [&](int i, int c) { return work.d_delta[i * Dv + c]; },
      [&](int j, int c, float sum) {
        work.y[j * Dv + c] = sum;
        d.v[in.value(begin + j, head, c)] = static_cast<X>(gates.beta[j] * sum);
      });
  __syncthreads();
  block_product(
      n, n, Dv, [&](int i, int c) { return work.y[i * Dv + c]; }, [&](int c, int j) { return work.delta[j * Dv + c]; },
      [&](int i, int j, float sum) { work.d_m[i * kChunk + j] = j < i ? -sum * chunk.decay(i, j) : 0.0f; });
  block_product(
      n, n, Dv, [&](int i, int c) { return d_out(i, c); }, [&](int c, int j) { return work.delta[j * Dv + c]; },
      [&](int i, int j, float sum) { work.d_s[i * kChunk + j] = s * sum * chunk.decay(i, j); });
  float inner = 0;
  if (state && !is_last)
    for (int at = threadIdx.x; at < Dk * Dv; at += kThreads) inner += state[at] * d_state[at];
  inner = block_sum(inner);  // also a barrier

  float d_last = 0;
  for (int i = threadIdx.x; i < n; i += kThreads) {
    float d_beta = 0, d_read = 0, d_output = 0, d_write = 0;
    for (int c = 0; c < Dv; ++c) {
      const int at = i * Dv + c;
      const float read = gates.e_gamma[i] * work.ks[at];
      d_beta += work.y[at] * (chunk.v(i, c) - read);
      d_read += gates.beta[i] * work.y[at] * read;
      d_output += s * gates.e_gamma[i] * d_out(i, c) * work.qs[at];
      d_write += gates.e_rest[i] * work.delta[at] * work.kds[at];
    }
    // M_ij = beta_i kk_ij D_ij, and s q_i k_j D_ij = P_ij
    auto in_m = [&](int row, int column) { return work.d_m[row * kChunk + column] * work.kk[row * kChunk + column]; };
    auto in_p = [&](int row, int column) {  // the gradient of P times P
      float dot = 0;
      if (column <= row)
        for (int c = 0; c < Dv; ++c) dot += d_out(row, c) * work.delta[column * Dv + c];
      return dot * work.p[row * kChunk + column];
    };
    float sum_m = 0, sum = d_output - d_read - d_write;
    for (int j = 0; j <= i; ++j) {
      sum_m += in_m(i, j);
      sum += in_p(i, j);
    }
    for (int j = i; j < n; ++j) sum -= gates.beta[j] * in_m(j, i) + in_p(j, i);
    d_gamma[i] = sum + gates.beta[i] * sum_m;
    d.beta[(begin + i) * in.Hv + head] = d_beta + sum_m;
    d_last += d_write;
  }
  d_last = block_sum(d_last) + (state && !is_last ? chunk.e_last() * inner : 0.0f);
  if (threadIdx.x == 0) {
    float sum = d_last;
    for (int i = n - 1; i >= 0; --i) d.log_decay[(begin + i) * in.Hv + head] = sum += d_gamma[i];
  }

  auto d_ks = [&](int i, int c) { return -gates.e_gamma[i] * gates.beta[i] * work.y[i * Dv + c]; };
  auto d_qs = [&](int i, int c) { return s * gates.e_gamma[i] * d_out(i, c); };
  auto add_to = [&](float* rows) { return [=](int i, int a, float sum) { rows[i * Dk + a] += sum; }; };
  block_product(
      n, Dk, n,
      [&](int i, int j) { return gates.beta[i] * work.d_m[i * kChunk + j] + gates.beta[j] * work.d_m[j * kChunk + i]; },
      [&](int j, int a) { return chunk.k(j, a); },
      [&](int i, int a, float sum) { work.d_k[i * Dk + a] = (is_first_head ? 0.0f : work.d_k[i * Dk + a]) + sum; });
  block_product(
      n, Dk, n, [&](int j, int i) { return work.d_s[i * kChunk + j]; }, [&](int i, int a) { return chunk.q(i, a); },
      add_to(work.d_k));
  block_product(
      n, Dk, n, [&](int i, int j) { return work.d_s[i * kChunk + j]; }, [&](int j, int a) { return chunk.k(j, a); },
      [&](int i, int a, float sum) { work.d_q[i * Dk + a] = (is_first_head ? 0.0f : work.d_q[i * Dk + a]) + sum; });
  if (state) {
    block_product(
        n, Dk, Dv, d_ks, [&](int c, int a) { return state[a * Dv + c]; }, add_to(work.d_k));
    block_product(
        n, Dk, Dv, d_qs, [&](int c, int a) { return state[a * Dv + c]; }, add_to(work.d_q));
  }
  if (!is_last) {
    block_product(
        n, Dk, Dv, [&](int i, int c) { return gates.e_rest[i] * work.delta[i * Dv + c]; },
        [&](int c, int a) { return d_state[a * Dv + c]; }, add_to(work.d_k));
  }
  __syncthreads();
  block_product(
      Dk, Dv, 2 * n, [&](int a, int i) { return i < n ? chunk.k(i, a) : chunk.q(i - n, a); },
      [&](int i, int c) { return i < n ? d_ks(i, c) : d_qs(i - n, c); },
      [&](int a, int c, float sum) {
        d_state[a * Dv + c] = (is_last ? 0.0f : chunk.e_last() * d_state[a * Dv + c]) + sum;
      });
}

// The documents of a key head, one after another, each from its last chunk to its first, all value heads in each.
template <class X>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(Gradients<X> d, const X* d_o, Inputs<X> in, BorderStates states, RowStates initial,
                    RowStates d_initial, RowStates d_final, float* scratch, int64_t scratch_floats) {
  __shared__ Gates gates;
  __shared__ float d_gamma[kChunk];
  const int state_size = in.Dk * in.Dv;
  const Work work(scratch + blockIdx.x * scratch_floats, in.Dk, in.Dv, in.group());
  for (int64_t task = blockIdx.x; task < int64_t(in.num_documents) * in.Hk; task += gridDim.x) {
    const int document = static_cast<int>(task / in.Hk), key_head = static_cast<int>(task % in.Hk);
    const int first = in.first_chunk[document], end = in.first_chunk[document + 1];
    for (int c = end - 1; c >= first; --c) {
      const int64_t begin = in.chunk_begin[c];
      const int n = in.chunk_begin[c + 1] - static_cast<int>(begin);
      for (int r = 0; r < in.group(); ++r) {
        const int head = key_head * in.group() + r;
        const Chunk<X> chunk{in, work, gates, head, key_head, begin, n};
        const float* state =
            c == first ? initial.before(begin, head, in.Hv, state_size) : states.at(begin, head, in.Hv, state_size);
        const float* behind = c + 1 == end ? d_final.behind(begin + n, head, in.Hv, state_size) : nullptr;
        float* const d_state = work.d_state + r * state_size;
        for (int at = threadIdx.x; behind && at < state_size; at += kThreads) d_state[at] = behind[at];
        backward_value_head(d, d_o, chunk, state, d_state, c + 1 == end && !behind, r == 0, d_gamma);
        float* const before = c == first ? d_initial.before(begin, head, in.Hv, state_size) : nullptr;
        __syncthreads();
        for (int at = threadIdx.x; before && at < state_size; at += kThreads) before[at] = d_state[at];
      }
      __syncthreads();
      for (int at = threadIdx.x; at < n * in.Dk; at += kThreads) {
        const int64_t to = in.key(begin + at / in.Dk, key_head, at % in.Dk);
        d.k[to] = static_cast<X>(work.d_k[at]);
        d.q[to] = static_cast<X>(work.d_q[at]);
      }
    }
  }
}

}  // namespace braid::cuda::delta_rule_any
