#pragma once

#include "kernels/cuda/gated_delta_rule_chunk.cuh"

namespace braid::cuda::delta_rule {

inline constexpr int kGradientWarps = 8;
inline constexpr int kGradientThreads = kGradientWarps * kWarpSize;

struct Gradients {
  bf16 *q, *k;
  float *beta, *log_decay;
};

// What the scans left, of which the gradients are made.
struct Scanned {
  const bf16 *delta, *y;  // (N, Hv, kDim)
  BorderStates states, d_states;
};

// Rows lane and lane + 32 of a chunk: every row becomes the sum from it to the last. All 32 lanes call it.
__device__ __forceinline__ void sum_to_the_end(float (&value)[2]) {
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int offset = 1; offset < kWarpSize; offset *= 2) {
      const float above = __shfl_down_sync(kAllLanes, value[half], offset);
      if (lane + offset < kWarpSize) value[half] += above;
    }
  }
  value[0] += __shfl_sync(kAllLanes, value[1], 0);
}

struct GradientShared {
  bf16 k[Rows::elements(kChunk)], q[Rows::elements(kChunk)];
  bf16 y[Rows::elements(kChunk)], d_o[Rows::elements(kChunk)], delta[Rows::elements(kChunk)];
  bf16 state[Rows::elements(kDim)], d_state[Rows::elements(kDim)];
  Gates gates[2];  // of this value head and of the next
  // Sums over the columns of one warp or the rows of one warp, added in order at the end.
  float read[4][kChunk], output[4][kChunk], write[4][kChunk];  // k . (S0 y), q . (S0 dO), k . (dS delta)
  float row_m[4][kChunk], row_p[4][kChunk], column[2][kChunk];
  float y_value[kChunk];        // y . v
  float inner[kGradientWarps];  // of <dS, S0>
};

// A warp's 32 rows of (tokens, kDim) sums by 32 columns, or of (tokens, tokens) sums by 16 columns.
struct WarpTile {
  int row, column, square_column;
  __device__ WarpTile()
      : row(threadIdx.x / kWarpSize % 2 * 32),
        column(threadIdx.x / kWarpSize / 2 * 32),
        square_column(threadIdx.x / kWarpSize / 2 * 16) {}
  __device__ int row_of(int block, int half) const { return row + 16 * block + 8 * half + threadIdx.x % kWarpSize / 4; }
  __device__ int lane_column(int block) const { return 8 * block + threadIdx.x % 4 * 2; }
};
using WideSums = Sums[2][4];    // (32, 32)
using SquareSums = Sums[2][2];  // (32, 16)

// sums += rows of a times b, (kDim, kDim)
__device__ __forceinline__ void multiply_by_state(WideSums& sums, Rows a, Rows b, const WarpTile& tile) {
#pragma unroll
  for (int k = 0; k < kDim; k += 16) {
    const LeftFactor left[2] = {a.left(tile.row, k), a.left(tile.row + 16, k)};
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const RightFactors right = b.right(k, tile.column + 16 * n);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        multiply_add(sums[m][2 * n], left[m], right.at[0]);
        multiply_add(sums[m][2 * n + 1], left[m], right.at[1]);
      }
    }
  }
}

// sums += a b^T, both (tokens, kDim)
__device__ __forceinline__ void multiply_rows(SquareSums& sums, Rows a, Rows b, const WarpTile& tile) {
#pragma unroll
  for (int k = 0; k < kDim; k += 16) {
    const RightFactors right = b.right_transposed(k, tile.square_column);
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const LeftFactor left = a.left(tile.row + 16 * m, k);
      multiply_add(sums[m][0], left, right.at[0]);
      multiply_add(sums[m][1], left, right.at[1]);
    }
  }
}

// sums += a b or a^T b, a (tokens, tokens), b (tokens, kDim)
template <bool kTransposed>
__device__ __forceinline__ void multiply_square(WideSums& sums, Square a, Rows b, const WarpTile& tile) {
#pragma unroll
  for (int k = 0; k < kChunk; k += 16) {
    LeftFactor left[2];
#pragma unroll
    for (int m = 0; m < 2; ++m)
      left[m] = kTransposed ? a.left_transposed(tile.row + 16 * m, k) : a.left(tile.row + 16 * m, k);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const RightFactors right = b.right(k, tile.column + 16 * n);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        multiply_add(sums[m][2 * n], left[m], right.at[0]);
        multiply_add(sums[m][2 * n + 1], left[m], right.at[1]);
      }
    }
  }
}

__device__ __forceinline__ float quad_sum(float x) {  // over the lanes that hold a row
  x += __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
}
__device__ __forceinline__ float column_sum(float x) {  // over the lanes that hold a column
  x += __shfl_xor_sync(kAllLanes, x, 4);
  x += __shfl_xor_sync(kAllLanes, x, 8);
  return x + __shfl_xor_sync(kAllLanes, x, 16);
}

// dots[row] = sums of the row times `rows`, over the warp's columns
__device__ __forceinline__ void dot_rows(float* dots, const WideSums& sums, Rows rows, const WarpTile& tile) {
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = tile.row_of(m, half);
      float dot = 0;
#pragma unroll
      for (int b = 0; b < 4; ++b) {
        const float2 pair = unpack_bf16(rows.pair(row, tile.column + tile.lane_column(b)));
        dot += pair.x * sums[m][b][2 * half] + pair.y * sums[m][b][2 * half + 1];
      }
      dot = quad_sum(dot);
      if (threadIdx.x % 4 == 0) dots[row] = dot;
    }
  }
}

__device__ __forceinline__ void clear(WideSums& sums) {
#pragma unroll
  for (int i = 0; i < 2 * 4 * 4; ++i) sums[i / 16][i / 4 % 4][i % 4] = 0;
}

// to += factor(row) from
template <class Factor>
__device__ __forceinline__ void add_scaled(WideSums& to, const WideSums& from, const WarpTile& tile, Factor factor) {
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float f = factor(tile.row_of(m, half));
#pragma unroll
      for (int b = 0; b < 4; ++b) {
        to[m][b][2 * half] += f * from[m][b][2 * half];
        to[m][b][2 * half + 1] += f * from[m][b][2 * half + 1];
      }
    }
  }
}

template <int kColumns, int kBlocks>
__device__ __forceinline__ void store_rounded(SharedMatrix<kColumns> to, const Sums (&sums)[2][kBlocks],
                                              const WarpTile& tile, int column) {
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int b = 0; b < kBlocks; ++b)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        to.pair(tile.row_of(m, half), column + tile.lane_column(b)) =
            pack_bf16(sums[m][b][2 * half], sums[m][b][2 * half + 1]);
}

// With M = D o strictLower(B K K^T), so that delta and y solve with I + M, and the gradients
//   dM = -strictLower(y delta^T),   dP = lower(dO delta^T),   d_kk = B (D o dM),   d_qk = s D o dP,
// what one value head adds to the gradients of the square products; and to the sums over rows and columns that the
// gates' gradients need.
__device__ __forceinline__ void add_squares(SquareSums& d_kk, SquareSums& d_qk, GradientShared& shared,
                                            const SquareSums& kk, const SquareSums& qk, const Gates& gates, float s,
                                            const WarpTile& tile) {
  SquareSums y_delta = {}, d_p = {};
  multiply_rows(y_delta, Rows{shared.y}, Rows{shared.delta}, tile);
  multiply_rows(d_p, Rows{shared.d_o}, Rows{shared.delta}, tile);
  const int warp_column = tile.square_column / 16, warp_row = tile.row / 32;
  float column[2][2] = {};
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = tile.row_of(m, half);
      const float gamma = gates.gamma[row], beta = gates.beta[row];
      float row_m = 0, row_p = 0;
#pragma unroll
      for (int b = 0; b < 2; ++b) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int e = 2 * half + i, j = tile.square_column + tile.lane_column(b) + i;
          const float decay = j <= row ? __expf(gamma - gates.gamma[j]) : 0.0f;
          const float d_m = j < row ? -y_delta[m][b][e] * decay : 0.0f, d_s = s * d_p[m][b][e] * decay;
          const float in_m = d_m * kk[m][b][e], in_p = d_s * qk[m][b][e];
          d_kk[m][b][e] += beta * d_m;
          d_qk[m][b][e] += d_s;
          row_m += in_m;
          row_p += in_p;
          column[b][i] += beta * in_m + in_p;
        }
      }
      row_m = quad_sum(row_m);
      row_p = quad_sum(row_p);
      if (threadIdx.x % 4 == 0) {
        shared.row_m[warp_column][row] = row_m;
        shared.row_p[warp_column][row] = row_p;
      }
    }
  }
#pragma unroll
  for (int b = 0; b < 2; ++b) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float sum = column_sum(column[b][i]);
      if (threadIdx.x % kWarpSize < 4) shared.column[warp_row][tile.square_column + tile.lane_column(b) + i] = sum;
    }
  }
}

__device__ __forceinline__ float sum_of_four(const float (&parts)[4][kChunk], int i) {
  return (parts[0][i] + parts[1][i]) + (parts[2][i] + parts[3][i]);
}

// Gradients of the gates of one value head, by one warp: lane l for tokens l and l + 32.
__device__ __forceinline__ void write_gate_gradients(const Gradients& d, const GradientShared& shared,
                                                     const Gates& gates, float s, int64_t begin, int n, int Hv,
                                                     int head, bool is_inner) {
  const int lane = threadIdx.x % kWarpSize;
  float d_gamma[2], d_write[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int i = lane + half * kWarpSize;
    const float beta = gates.beta[i], e = gates.e_gamma[i];
    const float read = e * sum_of_four(shared.read, i), sum_m = sum_of_four(shared.row_m, i);
    d_write[half] = gates.e_rest[i] * sum_of_four(shared.write, i);
    d_gamma[half] = beta * sum_m + sum_of_four(shared.row_p, i) - shared.column[0][i] - shared.column[1][i] +
                    s * e * sum_of_four(shared.output, i) - beta * read - d_write[half];
    if (i < n) d.beta[(begin + i) * Hv + head] = shared.y_value[i] - read + sum_m;
  }
  float inner = 0;
#pragma unroll
  for (int warp = 0; warp < kGradientWarps; ++warp) inner += shared.inner[warp];
  const float d_last = warp_sum(d_write[0] + d_write[1]) + (is_inner ? gates.e_last() * inner : 0.0f);
#pragma unroll
  for (int half = 0; half < 2; ++half)
    if (lane + half * kWarpSize == n - 1) d_gamma[half] += d_last;
  // log_decay_t is in gamma_i for all i >= t.
  sum_to_the_end(d_gamma);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int i = lane + half * kWarpSize;
    if (i < n) d.log_decay[(begin + i) * Hv + head] = d_gamma[half];
  }
}

// A block per chunk and key head, one of its value heads after another, whose shares of the gradients of q and k are
// summed in registers. Warp w holds a (32, 32) tile of them. With S0 the state before the chunk, dS the gradient of the
// state after it, and y the gradient of B (V - diag(e^gamma) K S0):
//   dK = -diag(e^gamma) B y S0^T + diag(e^(Gamma - gamma)) delta dS^T + (d_kk + d_kk^T) K + d_qk^T Q
//   dQ = s diag(e^gamma) dO S0^T + d_qk K
// The gates' gradients come from the same products, as dot products of rows. Per token and value head it reads 2 KB and
// 512 / group bytes; 131 kFLOP and 98 / group.
__global__ void __launch_bounds__(kGradientThreads, 1)
    gradient_kernel(Gradients d, Inputs in, const bf16* d_o, const float2* all_gates, Scanned scanned) {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  auto& shared = *reinterpret_cast<GradientShared*>(shared_bytes);
  const Rows k{shared.k}, q{shared.q}, y{shared.y}, d_out{shared.d_o}, delta{shared.delta};
  const Rows state{shared.state}, d_state{shared.d_state};
  const int chunk = blockIdx.x / in.Hk, key_head = blockIdx.x % in.Hk;
  const int64_t begin = in.chunk_begin[chunk], end = in.chunk_begin[chunk + 1];
  const int n = static_cast<int>(end - begin);
  const bool is_first = in.document_begin[begin] == begin;
  const bool is_last = chunk + 1 == in.num_chunks || in.document_begin[end] == end;
  const WarpTile tile;
  const int64_t key_stride = int64_t(in.Hk) * kDim, value_stride = int64_t(in.Hv) * kDim;

  auto load_head = [&](int r) {
    const int head = key_head * in.group() + r;
    const int64_t row = in.value_row(begin, head);
    load_rows<kGradientThreads>(y, scanned.y + row, value_stride, n);
    load_rows<kGradientThreads>(d_out, d_o + row, value_stride, n);
    load_rows<kGradientThreads>(delta, scanned.delta + row, value_stride, n);
    if (!is_first) load_rows<kGradientThreads, kDim>(state, scanned.states.at(begin, head, in.Hv), kDim, kDim);
    if (!is_last) load_rows<kGradientThreads, kDim>(d_state, scanned.d_states.at(end, head, in.Hv), kDim, kDim);
    if (threadIdx.x < kChunk) shared.gates[r % 2].load(in, all_gates, begin, n, head, threadIdx.x);
  };

  load_rows<kGradientThreads>(k, in.k + in.key_row(begin, key_head), key_stride, n);
  load_rows<kGradientThreads>(q, in.q + in.key_row(begin, key_head), key_stride, n);
  load_head(0);
  WideSums d_k = {}, d_q = {};
  SquareSums kk = {}, qk = {}, d_kk = {}, d_qk = {};
  for (int r = 0; r < in.group(); ++r) {
    const int head = key_head * in.group() + r;
    const Gates& gates = shared.gates[r % 2];
    wait_for_copies();
    __syncthreads();
    if (r == 0) {
      multiply_rows(kk, k, k, tile);
      multiply_rows(qk, q, k, tile);
    }
    add_squares(d_kk, d_qk, shared, kk, qk, gates, in.s, tile);

    WideSums sums = {};
    if (!is_first) multiply_by_state(sums, y, state, tile);
    dot_rows(shared.read[tile.column / 32], sums, k, tile);
    add_scaled(d_k, sums, tile, [&](int row) { return -gates.e_gamma[row] * gates.beta[row]; });
    clear(sums);
    if (!is_first) multiply_by_state(sums, d_out, state, tile);
    dot_rows(shared.output[tile.column / 32], sums, q, tile);
    add_scaled(d_q, sums, tile, [&](int row) { return in.s * gates.e_gamma[row]; });
    clear(sums);
    if (!is_last) multiply_by_state(sums, delta, d_state, tile);
    dot_rows(shared.write[tile.column / 32], sums, k, tile);
    add_scaled(d_k, sums, tile, [&](int row) { return gates.e_rest[row]; });

    const int row = threadIdx.x / 4;  // y . v, four threads per token
    float y_value = 0;
    if (row < n) {
#pragma unroll
      for (int c = threadIdx.x % 4 * 8; c < kDim; c += 32) {
        const auto a = Vec<bf16>::load(y.at(row, c)), b = Vec<bf16>::load(in.v + in.value_row(begin + row, head) + c);
#pragma unroll
        for (int i = 0; i < 8; ++i) y_value += a[i] * b[i];
      }
    }
    y_value = quad_sum(y_value);
    if (threadIdx.x % 4 == 0) shared.y_value[row] = y_value;

    float inner = 0;
    if (!is_first && !is_last) {
#pragma unroll
      for (int i = 0; i < kDim * kDim / 8 / kGradientThreads; ++i) {
        const int vector = i * kGradientThreads + threadIdx.x;
        const auto a = Vec<bf16>::load(state.at(vector / 16, vector % 16 * 8));
        const auto b = Vec<bf16>::load(d_state.at(vector / 16, vector % 16 * 8));
#pragma unroll
        for (int e = 0; e < 8; ++e) inner += a[e] * b[e];
      }
    }
    inner = warp_sum(inner);
    if (threadIdx.x % kWarpSize == 0) shared.inner[threadIdx.x / kWarpSize] = inner;

    __syncthreads();
    if (r + 1 < in.group()) load_head(r + 1);
    if (threadIdx.x < kWarpSize)
      write_gate_gradients(d, shared, gates, in.s, begin, n, in.Hv, head, !is_first && !is_last);
  }

  // The last head's rows are no longer needed.
  const Square d_keys{shared.y}, d_queries{shared.d_o};
  store_rounded(d_keys, d_kk, tile, tile.square_column);
  store_rounded(d_queries, d_qk, tile, tile.square_column);
  __syncthreads();
  multiply_square<false>(d_k, d_keys, k, tile);
  multiply_square<true>(d_k, d_keys, k, tile);
  multiply_square<true>(d_k, d_queries, q, tile);
  multiply_square<false>(d_q, d_queries, k, tile);
  store_rounded(delta, d_k, tile, tile.column);
  store_rounded(state, d_q, tile, tile.column);
  __syncthreads();
  store_rows<kGradientThreads>(d.k + in.key_row(begin, key_head), key_stride, delta, n);
  store_rows<kGradientThreads>(d.q + in.key_row(begin, key_head), key_stride, state, n);
}

}  // namespace braid::cuda::delta_rule
