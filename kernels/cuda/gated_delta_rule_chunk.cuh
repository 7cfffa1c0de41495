#pragma once

#include "kernels/cuda/gated_delta_rule_states.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/gated_delta_rule.h"

// The gated delta rule for bf16 activations and heads of 128, on tensor cores. Notation of kernels/gated_delta_rule.h,
// for a chunk of n tokens, with gamma the running sum of log_decay from the start of the chunk, Gamma its last value,
// D_ij = exp(gamma_i - gamma_j) for i >= j and 0 above, B = diag(beta), S0 the state before the chunk:
//   delta = Tm B (V - diag(e^gamma) K S0),   Tm = D o T,   T = (I + strictLower(B K K^T))^-1
//   O     = s diag(e^gamma) Q S0 + P delta,  P  = s D o lower(Q K^T)
//   S     = e^Gamma S0 + K^T diag(e^(Gamma - gamma)) delta
// Forward: a block per chunk makes Tm and P (prepare_kernel), then a block per document and value head carries the
// state through the document's chunks (scan_kernel). Backward: the same again, with the
// states at the borders of chunks kept; a scan from the last chunk to the first that carries the state's gradient
// (reverse_scan_kernel); and a block per chunk for everything that needs no order (gradient_kernel). Hopper has scans
// and gradients of its own (wgmma_*). fp32: gates, D, T, the states carried, all sums. bf16: factors of products, so
// also S0 and its gradient where they are multiplied, and what one kernel leaves to the next.
namespace braid::cuda::delta_rule {

inline constexpr int kChunk = kDeltaRuleChunk;
inline constexpr int kDim = 128;  // Dk and Dv
inline constexpr int kTokenBlocks = kChunk / 16;

using Rows = SharedMatrix<kDim>;      // (tokens, kDim), or a state: (Dv, Dk)
using Square = SharedMatrix<kChunk>;  // (tokens, tokens)

struct Inputs {
  const bf16 *q, *k, *v;
  const float *beta, *log_decay;
  const int32_t *chunk_begin, *first_chunk, *document_begin, *by_length;  // Segments::Tables
  int Hk, Hv, num_chunks;
  int64_t N;
  float s;

  __device__ int group() const { return Hv / Hk; }
  __device__ int64_t key_row(int64_t token, int key_head) const { return (token * Hk + key_head) * kDim; }
  __device__ int64_t value_row(int64_t token, int head) const { return (token * Hv + head) * kDim; }
  // Of what the kernels keep for each other, head by head.
  __device__ int64_t scalar_row(int64_t token, int head) const { return head * N + token; }
};

// What prepare_kernel leaves, per value head and token.
struct Prepared {
  bf16* tm;       // (Hv, N, kChunk)  the token's row of Tm, zeros above the diagonal; see square_column
  bf16* p;        // (Hv, N, kChunk)  of P
  float2* gates;  // (Hv, N)          gamma, and beta
};

// Smaller betas are taken as this: what a token then writes is nothing beside any other, and dividing by beta works.
inline constexpr float kLeastBeta = 0x1p-80f;

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

// Row r of a chunk's Tm or P lies as a line of a tile does that bulk copies fill (hopper.cuh): its eighths exchanged by
// the last three bits of r.
__device__ __forceinline__ int square_column(int row, int column) { return column ^ row % 8 * 8; }

// The first n lines of a square of Prepared, zeros below.
template <int kThreads>
__device__ __forceinline__ void load_square(Square to, const bf16* from, int n) {
#pragma unroll
  for (int i = 0; i < kChunk * kChunk / 8 / kThreads; ++i) {
    const int vector = i * kThreads + threadIdx.x, row = vector / 8, column = vector % 8 * 8;
    copy_async(to.at(row, column), from + (row < n ? row * kChunk + square_column(row, column) : 0), row < n);
  }
}

// A (16, 16) factor to where it lies in a matrix.
template <int kColumns>
__device__ __forceinline__ void store_block(SharedMatrix<kColumns> to, const LeftFactor& f, int row, int column) {
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int i = 0; i < 4; ++i) to.pair(row + lane / 4 + i % 2 * 8, column + lane % 4 * 2 + i / 2 * 8) = f.block[i];
}

// Gates of the chunk's tokens for one value head, from thread i < kChunk for token i. Tokens behind the chunk's end
// have beta 0 and the last token's gamma, so the last entry always holds Gamma.
struct Gates {
  float beta[kChunk], gamma[kChunk], e_gamma[kChunk];
  float e_rest[kChunk];  // exp(Gamma - gamma)

  __device__ __forceinline__ void load(const Inputs& in, const float2* all_gates, int64_t begin, int n, int head,
                                       int i) {
    const float2* gates = all_gates + in.scalar_row(begin, head);
    const float last = gates[n - 1].x;
    const float2 own = i < n ? gates[i] : make_float2(last, 0.0f);
    beta[i] = own.y;
    gamma[i] = own.x;
    e_gamma[i] = __expf(own.x);
    e_rest[i] = __expf(last - own.x);
  }
  __device__ float e_last() const { return e_gamma[kChunk - 1]; }
};

inline constexpr int kPrepareThreads = kTokenBlocks * kWarpSize;
inline constexpr int kHeadsAtOnce = kPrepareThreads / kWarpSize;  // whose gates a block has at a time
inline constexpr int kFloatRow = 16 + 4;                          // stride of a (16, 16) block of floats

struct PrepareShared {
  struct Loaded {
    bf16 k[Rows::elements(kChunk)], q[Rows::elements(kChunk)];
  };
  struct Squares {
    // M below the diagonal blocks, on them their inverse: rounded, and what rounding left.
    bf16 high[Square::elements(kChunk)], low[Square::elements(kChunk)];
    bf16 tm[Square::elements(kChunk)], p[Square::elements(kChunk)];
  };
  union {
    Loaded loaded;
    Squares squares;
  };
  alignas(16) float diagonal[kTokenBlocks][16 * kFloatRow];  // blocks of M, transposed
  float gamma[kHeadsAtOnce][kChunk], beta[kHeadsAtOnce][kChunk];
};

// A factor as the sum of two: rounded to bf16, and the rest.
struct SplitFactor {
  LeftFactor high, low;
  SplitFactor() = default;
  __device__ __forceinline__ SplitFactor(const Sums& left, const Sums& right) : high(rounded(left, right)) {
    Sums rest[2] = {left, right};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = unpack_bf16(high.block[i]);
      rest[i / 2][i % 2 * 2] -= pair.x;
      rest[i / 2][i % 2 * 2 + 1] -= pair.y;
    }
    low = rounded(rest[0], rest[1]);
  }
};

// (16, 16) sums += a times the block of high + low with corner (k, n), but for the product of what rounding left; what
// is small goes to sums of its own, so that less waits for what came before.
__device__ __forceinline__ void multiply_split(Sums (&sums)[2], Sums (&small)[2], const SplitFactor& a, Square high,
                                               Square low, int k, int n) {
  const RightFactors b = high.right(k, n), b_rest = low.right(k, n);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    multiply_add(sums[i], a.high, b.at[i]);
    multiply_add(small[i], a.low, b.at[i]);
    multiply_add(small[i], a.high, b_rest.at[i]);
  }
}
__device__ __forceinline__ SplitFactor split_sum(const Sums (&sums)[2], const Sums (&small)[2], float sign) {
  Sums total[2];
#pragma unroll
  for (int i = 0; i < 8; ++i) total[i / 4][i % 4] = sign * (sums[i / 4][i % 4] + small[i / 4][i % 4]);
  return SplitFactor(total[0], total[1]);
}

// The inverse of I + a strictly lower block (16, 16), of which `m` is the transpose: column by column of the block,
// lane l for column l % 16 of the inverse, lanes from 16 on for what rounding leaves of it.
__device__ __forceinline__ void invert_diagonal(Square high, Square low, const float* m, int first) {
  const int lane = threadIdx.x % kWarpSize, column = lane % 16;
  float x[16];
#pragma unroll
  for (int i = 0; i < 16; ++i) x[i] = i == column ? 1.0f : 0.0f;
#pragma unroll
  for (int k = 0; k < 15; ++k) {
    const float solved = x[k];
#pragma unroll
    for (int i = (k + 1) / 4 * 4; i < 16; i += 4) {  // zero up to the diagonal
      const float4 part = *reinterpret_cast<const float4*>(m + k * kFloatRow + i);
      x[i] -= part.x * solved, x[i + 1] -= part.y * solved, x[i + 2] -= part.z * solved, x[i + 3] -= part.w * solved;
    }
  }
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const bf16 rounded_x = bf16(x[i]);
    if (lane < 16) *high.at(first + i, first + column) = rounded_x;
    else *low.at(first + i, first + column) = bf16(x[i] - float(rounded_x));
  }
}

// A block per chunk and key head, a warp per 16 rows: the products K K^T and Q K^T once, then for one value head after
// another M = D o strictLower(B K K^T), its inverse and P. The inverse Tm of I + M goes by blocks of 16: those on the
// diagonal by substitution in fp32, then each row of blocks from the diagonal to the left,
//   Tm_ij = -(sum over j < k <= i of Tm_ik M_kj) Tm_jj,
// in products of numbers split in two, so that Tm is rounded once, at the end. Per token and value head it writes 264
// bytes and reads 2 * 256 / group; 20 kFLOP / group in products and 3 k for the inverse.
__global__ void __launch_bounds__(kPrepareThreads, 4) prepare_kernel(Inputs in, Prepared out) {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  auto& shared = *reinterpret_cast<PrepareShared*>(shared_bytes);
  const Rows k{shared.loaded.k}, q{shared.loaded.q};
  const Square high{shared.squares.high}, low{shared.squares.low}, tm{shared.squares.tm}, p{shared.squares.p};
  const int chunk = blockIdx.x / in.Hk, key_head = blockIdx.x % in.Hk;
  const int64_t begin = in.chunk_begin[chunk];
  const int n = in.chunk_begin[chunk + 1] - static_cast<int>(begin);
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;

  load_rows<kPrepareThreads>(k, in.k + in.key_row(begin, key_head), int64_t(in.Hk) * kDim, n);
  load_rows<kPrepareThreads>(q, in.q + in.key_row(begin, key_head), int64_t(in.Hk) * kDim, n);
  // Gates of the heads from `first` on, a warp each: lane l for tokens l and l + 32.
  auto load_gates = [&](int first) {
    const int r = first + warp, head = key_head * in.group() + r;
    if (r >= in.group()) return;
    float sum[2], beta[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = lane + half * kWarpSize;
      const int64_t at = (begin + i) * in.Hv + head;
      sum[half] = i < n ? in.log_decay[at] : 0.0f;
      beta[half] = i < n ? fmaxf(in.beta[at], kLeastBeta) : 0.0f;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int offset = 1; offset < kWarpSize; offset *= 2) {
        const float below = __shfl_up_sync(kAllLanes, sum[half], offset);
        if (lane >= offset) sum[half] += below;
      }
    }
    sum[1] += __shfl_sync(kAllLanes, sum[0], kWarpSize - 1);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = lane + half * kWarpSize;
      shared.gamma[warp][i] = sum[half];
      shared.beta[warp][i] = beta[half];
      if (i < n) out.gates[in.scalar_row(begin + i, head)] = make_float2(sum[half], beta[half]);
    }
  };
  load_gates(0);
  wait_for_copies();
  __syncthreads();

  Sums kk[2 * kTokenBlocks] = {}, qk[2 * kTokenBlocks] = {};  // of the blocks up to the diagonal
#pragma unroll
  for (int a = 0; a < kDim; a += 16) {
    const LeftFactor key = k.left(16 * warp, a), query = q.left(16 * warp, a);
#pragma unroll
    for (int block = 0; block < kTokenBlocks; ++block) {
      if (block > warp) continue;
      const RightFactors keys = k.right_transposed(a, 16 * block);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        multiply_add(kk[2 * block + i], key, keys.at[i]);
        multiply_add(qk[2 * block + i], query, keys.at[i]);
      }
    }
  }
  __syncthreads();                                                            // the squares lie where the factors lay
  for (int i = threadIdx.x; i < kChunk * kChunk / 8; i += kPrepareThreads) {  // above the diagonal
    *reinterpret_cast<uint4*>(tm.at(i / 8, i % 8 * 8)) = make_uint4(0, 0, 0, 0);
    *reinterpret_cast<uint4*>(p.at(i / 8, i % 8 * 8)) = make_uint4(0, 0, 0, 0);
  }

  for (int r = 0; r < in.group(); ++r) {
    const int slot = r % kHeadsAtOnce, head = key_head * in.group() + r;
    if (slot == 0 && r > 0) load_gates(r);
    __syncthreads();  // the last head's squares are stored, this one's gates there
    const float *gamma = shared.gamma[slot], *beta = shared.beta[slot];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = 16 * warp + lane / 4 + 8 * half;
      const float own = gamma[row], own_beta = beta[row];
#pragma unroll
      for (int block = 0; block < 2 * kTokenBlocks; ++block) {
        if (block / 2 > warp) continue;
        const int column = 8 * block + lane % 4 * 2;
        const float2 other = *reinterpret_cast<const float2*>(gamma + column);
        // Above the diagonal the exponent is positive and may overflow.
        const float decay[2] = {column <= row ? __expf(own - other.x) : 0.0f,
                                column + 1 <= row ? __expf(own - other.y) : 0.0f};
        const float *kk_pair = &kk[block].element[2 * half], *qk_pair = &qk[block].element[2 * half];
        p.pair(row, column) = pack_bf16(in.s * decay[0] * qk_pair[0], in.s * decay[1] * qk_pair[1]);
        const float m[2] = {column < row ? own_beta * decay[0] * kk_pair[0] : 0.0f,
                            column + 1 < row ? own_beta * decay[1] * kk_pair[1] : 0.0f};
        if (block / 2 == warp) {
          float* to = &shared.diagonal[warp][column % 16 * kFloatRow + row % 16];
          to[0] = m[0], to[kFloatRow] = m[1];
        } else {
          const uint32_t pair = pack_bf16(m[0], m[1]);
          high.pair(row, column) = pair;
          low.pair(row, column) = pack_bf16(m[0] - unpack_bf16(pair).x, m[1] - unpack_bf16(pair).y);
        }
      }
    }
    __syncwarp();
    invert_diagonal(high, low, shared.diagonal[warp], 16 * warp);
    __syncthreads();

    SplitFactor row[kTokenBlocks];  // of blocks
    row[0].high = high.left(16 * warp, 16 * warp);
    row[0].low = low.left(16 * warp, 16 * warp);
    store_block(tm, row[0].high, 16 * warp, 16 * warp);
#pragma unroll
    for (int distance = 1; distance < kTokenBlocks; ++distance) {  // row[d]: block (warp, warp - d)
      if (distance > warp) continue;
      const int j = 16 * (warp - distance);
      Sums sums[2] = {}, small[2] = {}, solved[2] = {}, solved_small[2] = {};
#pragma unroll
      for (int d = 0; d < distance; ++d) multiply_split(sums, small, row[d], high, low, 16 * (warp - d), j);
      multiply_split(solved, solved_small, split_sum(sums, small, -1), high, low, j, j);
      row[distance] = split_sum(solved, solved_small, 1);
      store_block(tm, row[distance].high, 16 * warp, j);
    }
    __syncthreads();
    const int64_t at = in.scalar_row(begin, head) * kChunk;
    for (int i = threadIdx.x; i < n * (kChunk / 8); i += kPrepareThreads) {
      const int line = i / 8, column = i % 8 * 8;
      const int64_t to = at + line * kChunk + square_column(line, column);
      *reinterpret_cast<uint4*>(out.tm + to) = *reinterpret_cast<const uint4*>(tm.at(line, column));
      *reinterpret_cast<uint4*>(out.p + to) = *reinterpret_cast<const uint4*>(p.at(line, column));
    }
  }
}

}  // namespace braid::cuda::delta_rule
