#pragma once

#include "kernels/cuda/mma.cuh"
#include "kernels/gated_delta_rule.h"

// The gated delta rule for bf16 activations and heads of 128, on tensor cores. Notation of kernels/gated_delta_rule.h,
// for a chunk of n tokens, with gamma the running sum of log_decay from the start of the chunk, Gamma its last value,
// D_ij = exp(gamma_i - gamma_j) for i >= j and 0 above, B = diag(beta), S0 the state before the chunk:
//   delta = Tm B (V - diag(e^gamma) K S0),   Tm = D o T,   T = (I + strictLower(B K K^T))^-1
//   O     = s diag(e^gamma) Q S0 + P delta,  P  = s D o lower(Q K^T)
//   S     = e^Gamma S0 + K^T diag(e^(Gamma - gamma)) delta
// Forward: a block per chunk makes Tm and P (prepare_kernel), then a block per document and value head carries the
// state through the document's chunks (scan_kernel). Backward: the same again, with the states at the borders of chunks
// kept; a scan from the last chunk to the first that carries the state's gradient (reverse_scan_kernel); and a block
// per chunk for everything that needs no order (gradient_kernel). fp32: gates, D, T, the states carried, all sums.
// bf16: factors of products, so also S0 and its gradient where they are multiplied, and what one kernel leaves to the
// next.
namespace braid::cuda::delta_rule {

inline constexpr int kChunk = kDeltaRuleChunk;
inline constexpr int kDim = 128;  // Dk and Dv
inline constexpr int kTokenBlocks = kChunk / 16;

using Rows = SharedMatrix<kDim>;      // (tokens, kDim), or a state: (Dv, Dk)
using Square = SharedMatrix<kChunk>;  // (tokens, tokens)

struct Inputs {
  const bf16 *q, *k, *v;
  const float *beta, *log_decay;
  const int32_t *chunk_begin, *first_chunk, *document_begin;  // Segments::Tables
  int Hk, Hv, num_chunks;
  float s;

  __device__ int group() const { return Hv / Hk; }
  __device__ int64_t key_row(int64_t token, int key_head) const { return (token * Hk + key_head) * kDim; }
  __device__ int64_t value_row(int64_t token, int head) const { return (token * Hv + head) * kDim; }
};

// What prepare_kernel leaves, per token and value head.
struct Prepared {
  bf16* tm;      // (N, Hv, kChunk)  the token's row of Tm, zeros above the diagonal
  bf16* p;       // (N, Hv, kChunk)  of P
  float* gamma;  // (N, Hv)
};

// Transposed states (Dv, Dk) at the borders between the chunks of a document. Borders lie 64 tokens or more apart, so
// their number is bounded by that of tokens, however many documents there are.
struct BorderStates {
  bf16* data;
  static int64_t slots(int64_t num_tokens) { return num_tokens / kChunk; }
  // Of the border before the chunk that begins at this token.
  __device__ bf16* at(int64_t token, int head, int Hv) const {
    return data + ((token / kChunk - 1) * Hv + head) * (kDim * kDim);
  }
};

// Rows [0, n) of a matrix in device memory to `kRows` rows of shared memory, zeros below. By all kThreads threads.
template <int kThreads, int kRows = kChunk, int kColumns>
__device__ __forceinline__ void load_rows(SharedMatrix<kColumns> to, const bf16* from, int64_t stride, int n) {
  constexpr int kVectors = kColumns / 8;
#pragma unroll
  for (int i = 0; i < kRows * kVectors / kThreads; ++i) {
    const int vector = i * kThreads + threadIdx.x, row = vector / kVectors, column = vector % kVectors * 8;
    copy_async(to.at(row, column), from + (row < n ? row * stride : 0) + column, row < n);
  }
}

// Rows [0, n) of shared memory to device memory, by all kThreads threads.
template <int kThreads>
__device__ __forceinline__ void store_rows(bf16* to, int64_t stride, Rows from, int n) {
  constexpr int kVectors = kDim / 8;
#pragma unroll
  for (int i = 0; i < kChunk * kVectors / kThreads; ++i) {
    const int vector = i * kThreads + threadIdx.x, row = vector / kVectors, column = vector % kVectors * 8;
    if (row < n)
      *reinterpret_cast<uint4*>(to + row * stride + column) = *reinterpret_cast<const uint4*>(from.at(row, column));
  }
}

// Gates of the chunk's tokens for one value head, from thread i < kChunk for token i. Tokens behind the chunk's end
// have beta 0 and the last token's gamma, so the last entry always holds Gamma.
struct Gates {
  float beta[kChunk], gamma[kChunk], e_gamma[kChunk];
  float e_rest[kChunk];  // exp(Gamma - gamma)

  __device__ __forceinline__ void load(const Inputs& in, const float* all_gammas, int64_t begin, int n, int head,
                                       int i) {
    auto gamma_of = [&](int token) { return all_gammas[(begin + token) * in.Hv + head]; };
    const float last = gamma_of(n - 1), own = i < n ? gamma_of(i) : last;
    beta[i] = i < n ? in.beta[(begin + i) * in.Hv + head] : 0.0f;
    gamma[i] = own;
    e_gamma[i] = __expf(own);
    e_rest[i] = __expf(last - own);
  }
  __device__ float e_last() const { return e_gamma[kChunk - 1]; }
};

inline constexpr int kPrepareThreads = 128;
inline constexpr int kHeadsAtOnce = kPrepareThreads / kChunk;
inline constexpr int kFloatRow = kChunk + 4;  // stride of a (tokens, tokens) matrix of floats

struct PrepareShared {
  struct Loaded {
    bf16 k[Rows::elements(kChunk)], q[Rows::elements(kChunk)];
  };
  struct Products {
    float kk[kChunk * kFloatRow], qk[kChunk * kFloatRow];
  };
  union {
    Loaded loaded;
    Products products;
  };
  float t[kHeadsAtOnce][kChunk * kChunk];
  float gamma[kHeadsAtOnce][kChunk], beta[kHeadsAtOnce][kChunk];
};

// One column of T by forward substitution, sixteen rows at a time: T = I - strictLower(B K K^T) T. kk is symmetric, so
// its row k is read where its column k is meant. Neighbouring threads hold neighbouring columns; a warp starts at the
// diagonal of its first column, and nothing above is written.
__device__ __forceinline__ void solve_column(float* t, const float* kk, const float* beta, int column, int n) {
  const int start = column / kWarpSize * kWarpSize;
  for (int base = start; base < n; base += 16) {
    float sum[16] = {};
    auto subtract_row = [&](int k, float x, int from) {  // sum[i] += kk[base + i][k] x, for i >= from
      const float4* row = reinterpret_cast<const float4*>(kk + k * kFloatRow + base);
#pragma unroll
      for (int i = from / 4; i < 4; ++i) {
        const float4 m = row[i];
        sum[4 * i] += m.x * x, sum[4 * i + 1] += m.y * x, sum[4 * i + 2] += m.z * x, sum[4 * i + 3] += m.w * x;
      }
    };
    for (int k = start; k < base; ++k) subtract_row(k, t[k * kChunk + column], 0);
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const float x = (base + i == column ? 1.0f : 0.0f) - beta[base + i] * sum[i];
      t[(base + i) * kChunk + column] = x;
      subtract_row(base + i, x, i + 1);
    }
  }
}

// A block per chunk and key head; its threads split 16 rows per warp for the products K K^T and Q K^T, a column each
// for T of two value heads at a time, and 8 columns of a row each for Tm and P. Per token and value head it writes 260
// bytes and reads 2 * 256 / group; 33 kFLOP in products and 4 k in the solve.
__global__ void __launch_bounds__(kPrepareThreads) prepare_kernel(Inputs in, Prepared out) {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  auto& shared = *reinterpret_cast<PrepareShared*>(shared_bytes);
  const Rows k{shared.loaded.k}, q{shared.loaded.q};
  const int chunk = blockIdx.x / in.Hk, key_head = blockIdx.x % in.Hk;
  const int64_t begin = in.chunk_begin[chunk];
  const int n = in.chunk_begin[chunk + 1] - static_cast<int>(begin);
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;

  load_rows<kPrepareThreads>(k, in.k + in.key_row(begin, key_head), int64_t(in.Hk) * kDim, n);
  load_rows<kPrepareThreads>(q, in.q + in.key_row(begin, key_head), int64_t(in.Hk) * kDim, n);
  wait_for_copies();
  __syncthreads();
  Sums kk[2 * kTokenBlocks] = {}, qk[2 * kTokenBlocks] = {};
#pragma unroll
  for (int a = 0; a < kDim; a += 16) {
    const LeftFactor key = k.left(16 * warp, a), query = q.left(16 * warp, a);
#pragma unroll
    for (int block = 0; block < kTokenBlocks; ++block) {
      const RightFactors keys = k.right_transposed(a, 16 * block);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        multiply_add(kk[2 * block + i], key, keys.at[i]);
        multiply_add(qk[2 * block + i], query, keys.at[i]);
      }
    }
  }
  __syncthreads();  // the products lie where the factors lay
#pragma unroll
  for (int block = 0; block < 2 * kTokenBlocks; ++block) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = (16 * warp + lane / 4 + 8 * half) * kFloatRow + 8 * block + lane % 4 * 2;
      *reinterpret_cast<float2*>(shared.products.kk + at) = make_float2(kk[block][2 * half], kk[block][2 * half + 1]);
      *reinterpret_cast<float2*>(shared.products.qk + at) = make_float2(qk[block][2 * half], qk[block][2 * half + 1]);
    }
  }

  const int slot = threadIdx.x / kChunk, i = threadIdx.x % kChunk;
  float *gamma = shared.gamma[slot], *beta = shared.beta[slot], *t = shared.t[slot];
  for (int first = 0; first < in.group(); first += kHeadsAtOnce) {
    const bool exists = first + slot < in.group();  // the same for all threads of a warp
    const int head = key_head * in.group() + first + slot;
    const int64_t gate = (begin + i) * in.Hv + head;
    float sum = exists && i < n ? in.log_decay[gate] : 0.0f;
#pragma unroll
    for (int offset = 1; offset < kWarpSize; offset *= 2) {
      const float below = __shfl_up_sync(kAllLanes, sum, offset);
      if (lane >= offset) sum += below;
    }
    __syncthreads();  // kk is written; the previous heads' t is read
    gamma[i] = sum;
    beta[i] = exists && i < n ? in.beta[gate] : 0.0f;
    __syncthreads();
    if (i >= kWarpSize) sum += gamma[kWarpSize - 1];
    __syncthreads();
    gamma[i] = sum;
    if (exists && i < n) out.gamma[gate] = sum;
    if (exists) solve_column(t, shared.products.kk, beta, i, n);
    __syncthreads();
    if (!exists) continue;
    for (int row = i / 8; row < n; row += kChunk / 8) {
      const int column = i % 8 * 8;
      Vec<bf16> tm, p;
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        const int j = column + c;
        // Above the diagonal the exponent is positive and may overflow, and t was not written.
        const float decay = j <= row ? __expf(gamma[row] - gamma[j]) : 0.0f;
        tm.set(c, j <= row ? decay * t[row * kChunk + j] : 0.0f);
        p.set(c, in.s * decay * shared.products.qk[row * kFloatRow + j]);
      }
      const int64_t at = ((begin + row) * in.Hv + head) * kChunk + column;
      tm.store(out.tm + at);
      p.store(out.p + at);
    }
  }
}

}  // namespace braid::cuda::delta_rule
