#pragma once

#include "kernels/cuda/gated_delta_rule_chunk.cuh"

// The two scans over the chunks of a document. Everything is computed transposed, with the value dimension as rows:
// warp w owns rows [16 w, 16 w + 16) of the transposed state, of V^T, delta^T and O^T, so that each result is the left
// factor of the next product without leaving the registers, and warps share nothing but what they load.
namespace braid::cuda::delta_rule {

inline constexpr int kScanWarps = kDim / 16;
inline constexpr int kScanThreads = kScanWarps * kWarpSize;

struct ScanShared {
  bf16 k[Rows::elements(kChunk)], q[Rows::elements(kChunk)];
  bf16 values[Rows::elements(kChunk)];  // V, or the gradient of O; on the way out what the warps made of it
  bf16 tm[Square::elements(kChunk)], p[Square::elements(kChunk)];
  Gates gates;
};

// The warp's 16 rows of a transposed state: column block b holds columns [8 b, 8 b + 8).
using StateRows = Sums[kDim / 8];

// sums[2 b + i] += state rows times the transpose of rows [token + 16 b + 8 i, ..) of `rows`, b < 2
__device__ __forceinline__ void read_state(Sums (&sums)[4], const StateRows& state, Rows rows, int token) {
#pragma unroll
  for (int a = 0; a < kDim / 16; ++a) {
    const LeftFactor left = rounded(state[2 * a], state[2 * a + 1]);
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      const RightFactors right = rows.right_transposed(16 * a, token + 16 * b);
      multiply_add(sums[2 * b], left, right.at[0]);
      multiply_add(sums[2 * b + 1], left, right.at[1]);
    }
  }
}

// state += factors (of all 64 tokens) times rows
__device__ __forceinline__ void write_state(StateRows& state, const LeftFactor (&factors)[kTokenBlocks], Rows rows) {
#pragma unroll
  for (int a = 0; a < kDim / 16; ++a) {
#pragma unroll
    for (int t = 0; t < kTokenBlocks; ++t) {
      const RightFactors right = rows.right(16 * t, 16 * a);
      multiply_add(state[2 * a], factors[t], right.at[0]);
      multiply_add(state[2 * a + 1], factors[t], right.at[1]);
    }
  }
}

__device__ __forceinline__ void scale_state(StateRows& state, float factor) {
#pragma unroll
  for (int b = 0; b < kDim / 8; ++b)
#pragma unroll
    for (int i = 0; i < 4; ++i) state[b][i] *= factor;
}

__device__ __forceinline__ void store_state(bf16* to, const StateRows& state, int first_row) {
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int b = 0; b < kDim / 8; ++b)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      *reinterpret_cast<uint32_t*>(to + (first_row + lane / 4 + 8 * half) * kDim + 8 * b + lane % 4 * 2) =
          pack_bf16(state[b][2 * half], state[b][2 * half + 1]);
}

// The two tokens whose columns a lane holds in the column block that starts at `token`.
__device__ __forceinline__ float2 of_tokens(const float* per_token, int token) {
  return *reinterpret_cast<const float2*>(per_token + token + threadIdx.x % 4 * 2);
}
__device__ __forceinline__ void scale_tokens(Sums& sums, float2 factor) {
  sums[0] *= factor.x, sums[1] *= factor.y, sums[2] *= factor.x, sums[3] *= factor.y;
}

// Transposed sums of 8 tokens to the rows of these tokens, columns [column, column + 16).
__device__ __forceinline__ void store_transposed(Rows to, const Sums& sums, int token, int column) {
  const int lane = threadIdx.x % kWarpSize, row = token + lane / 4;
  to.pair(row, column + lane % 4 * 2) = transposed_block(pack_bf16(sums[0], sums[1]));
  to.pair(row, column + 8 + lane % 4 * 2) = transposed_block(pack_bf16(sums[2], sums[3]));
}

// The same to rows in device memory, if these are among the first n.
struct DeviceRows {
  bf16* data;
  int64_t stride;
};
__device__ __forceinline__ void store_transposed(DeviceRows to, const Sums& sums, int token, int n, int column) {
  const int lane = threadIdx.x % kWarpSize, row = token + lane / 4;
  const uint32_t low = transposed_block(pack_bf16(sums[0], sums[1]));
  const uint32_t high = transposed_block(pack_bf16(sums[2], sums[3]));
  if (row >= n) return;
  uint32_t* pairs = reinterpret_cast<uint32_t*>(to.data + row * to.stride + column + lane % 4 * 2);
  pairs[0] = low, pairs[4] = high;
}

// What a scan kernel loads of a chunk, except `values`, whose memory is still needed when this starts.
struct ScanChunk {
  int64_t begin;
  int n;

  template <bool kWithOutputs>
  __device__ __forceinline__ void load(ScanShared& shared, const Inputs& in, const Prepared& prepared, int chunk,
                                       int head) {
    begin = in.chunk_begin[chunk];
    n = in.chunk_begin[chunk + 1] - static_cast<int>(begin);
    const int key_head = head / in.group();
    const int64_t key_stride = int64_t(in.Hk) * kDim, square_row = in.scalar_row(begin, head) * kChunk;
    load_rows<kScanThreads>(Rows{shared.k}, in.k + in.key_row(begin, key_head), key_stride, n);
    load_square<kScanThreads>(Square{shared.tm}, prepared.tm + square_row, n);
    if constexpr (kWithOutputs) {
      load_rows<kScanThreads>(Rows{shared.q}, in.q + in.key_row(begin, key_head), key_stride, n);
      load_square<kScanThreads>(Square{shared.p}, prepared.p + square_row, n);
    }
    if (threadIdx.x < kChunk) shared.gates.load(in, prepared.gates, begin, n, head, threadIdx.x);
  }
  __device__ __forceinline__ void load_values(ScanShared& shared, const Inputs& in, const bf16* values,
                                              int head) const {
    load_rows<kScanThreads>(Rows{shared.values}, values + in.value_row(begin, head), int64_t(in.Hv) * kDim, n);
  }
};

// A block per document and value head, chunk after chunk. With outputs it writes o; without, for the backward pass, it
// writes delta and the state at every border. Per token and value head it reads 1 KB (0.6 KB without outputs) and
// writes 256 bytes (and 512 for states), most of it from the second-level cache; 172 kFLOP (86 k).
template <bool kWithOutputs>
__global__ void __launch_bounds__(kScanThreads, 2)
    scan_kernel(Inputs in, Prepared prepared, bf16* o_or_delta, BorderStates states) {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  auto& shared = *reinterpret_cast<ScanShared*>(shared_bytes);
  const Rows k{shared.k}, q{shared.q}, values{shared.values};
  const Square tm{shared.tm}, p{shared.p};
  const Gates& gates = shared.gates;
  const int document = blockIdx.x / in.Hv, head = blockIdx.x % in.Hv;
  const int first_chunk = in.first_chunk[document], end_chunk = in.first_chunk[document + 1];
  const int v0 = threadIdx.x / kWarpSize * 16;  // the warp's first row

  StateRows state = {};
  ScanChunk at;
  at.load<kWithOutputs>(shared, in, prepared, first_chunk, head);
  at.load_values(shared, in, in.v, head);
  for (int chunk = first_chunk; chunk < end_chunk; ++chunk) {
    const bool is_first = chunk == first_chunk, is_last = chunk + 1 == end_chunk;
    wait_for_copies();
    __syncthreads();
    if (!kWithOutputs && !is_first) store_state(states.at(at.begin, head, in.Hv), state, v0);

    LeftFactor solve_for[kTokenBlocks];  // (B (V - diag(e^gamma) K S0))^T
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Sums sums[4] = {};
      if (!is_first) read_state(sums, state, k, 32 * half);
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        const int token = 32 * half + 16 * b;
        const LeftFactor value = values.left_transposed(v0, token);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float2 e = of_tokens(gates.e_gamma, token + 8 * i), beta = of_tokens(gates.beta, token + 8 * i);
          const float2 low = unpack_bf16(value.block[2 * i]), high = unpack_bf16(value.block[2 * i + 1]);
          Sums& s = sums[2 * b + i];
          s[0] = low.x - e.x * s[0], s[1] = low.y - e.y * s[1], s[2] = high.x - e.x * s[2], s[3] = high.y - e.y * s[3];
          scale_tokens(s, beta);
        }
        solve_for[2 * half + b] = rounded(sums[2 * b], sums[2 * b + 1]);
      }
    }
    __syncwarp();  // before the warp's columns of `values` are overwritten

    LeftFactor delta[kTokenBlocks], scaled[kTokenBlocks];  // delta^T, and with diag(e^(Gamma - gamma))
#pragma unroll
    for (int t = kTokenBlocks - 1; t >= 0; --t) {
      Sums sums[2] = {};
#pragma unroll
      for (int j = 0; j <= t; ++j) {
        const RightFactors right = tm.right_transposed(16 * j, 16 * t);
        multiply_add(sums[0], solve_for[j], right.at[0]);
        multiply_add(sums[1], solve_for[j], right.at[1]);
      }
      delta[t] = rounded(sums[0], sums[1]);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (!kWithOutputs) store_transposed(values, sums[i], 16 * t + 8 * i, v0);
        scale_tokens(sums[i], of_tokens(gates.e_rest, 16 * t + 8 * i));
      }
      scaled[t] = rounded(sums[0], sums[1]);
    }

    if constexpr (kWithOutputs) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        Sums sums[4] = {};
        if (!is_first) read_state(sums, state, q, 32 * half);
#pragma unroll
        for (int b = 0; b < 4; ++b) {
          const float2 e = of_tokens(gates.e_gamma, 32 * half + 8 * b);
          scale_tokens(sums[b], make_float2(in.s * e.x, in.s * e.y));
        }
#pragma unroll
        for (int b = 0; b < 2; ++b) {
          const int t = 2 * half + b;
#pragma unroll
          for (int j = 0; j <= t; ++j) {
            const RightFactors right = p.right_transposed(16 * j, 16 * t);
            multiply_add(sums[2 * b], delta[j], right.at[0]);
            multiply_add(sums[2 * b + 1], delta[j], right.at[1]);
          }
          store_transposed(values, sums[2 * b], 16 * t, v0);
          store_transposed(values, sums[2 * b + 1], 16 * t + 8, v0);
        }
      }
    }

    if (!is_last) {
      scale_state(state, gates.e_last());
      write_state(state, scaled, k);
    }
    __syncthreads();
    const ScanChunk done = at;
    if (!is_last) at.load<kWithOutputs>(shared, in, prepared, chunk + 1, head);
    store_rows<kScanThreads>(o_or_delta + in.value_row(done.begin, head), int64_t(in.Hv) * kDim, values, done.n);
    __syncthreads();
    if (!is_last) at.load_values(shared, in, in.v, head);
  }
}

// The gradients of the state, from the last chunk of a document to the first: a block per document and value head. With
// dS the gradient of the state after the chunk:
//   d_delta = diag(e^(Gamma - gamma)) K dS + P^T dO
//   y       = Tm^T d_delta, the gradient of B (V - diag(e^gamma) K S0);   dV = B y
//   dS0     = e^Gamma dS + Q^T (s diag(e^gamma) dO) - K^T (diag(e^gamma) B y)
// Writes y, dV and dS at every border. Per token and value head it reads 1 KB and writes 1 KB; 172 kFLOP.
__global__ void __launch_bounds__(kScanThreads, 2)
    reverse_scan_kernel(Inputs in, Prepared prepared, const bf16* d_o, bf16* y, bf16* d_v, BorderStates d_states) {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  auto& shared = *reinterpret_cast<ScanShared*>(shared_bytes);
  const Rows k{shared.k}, q{shared.q}, values{shared.values};
  const Square tm{shared.tm}, p{shared.p};
  const Gates& gates = shared.gates;
  const int document = blockIdx.x / in.Hv, head = blockIdx.x % in.Hv;
  const int first_chunk = in.first_chunk[document], end_chunk = in.first_chunk[document + 1];
  const int v0 = threadIdx.x / kWarpSize * 16;

  StateRows d_state = {};
  ScanChunk at;
  at.load<true>(shared, in, prepared, end_chunk - 1, head);
  at.load_values(shared, in, d_o, head);
  for (int chunk = end_chunk - 1; chunk >= first_chunk; --chunk) {
    const bool is_first = chunk == first_chunk, is_last = chunk + 1 == end_chunk;
    wait_for_copies();
    __syncthreads();
    if (!is_last) store_state(d_states.at(at.begin + at.n, head, in.Hv), d_state, v0);

    LeftFactor d_out[kTokenBlocks], d_delta[kTokenBlocks];  // transposed
#pragma unroll
    for (int t = 0; t < kTokenBlocks; ++t) d_out[t] = values.left_transposed(v0, 16 * t);
    __syncwarp();  // before the warp's columns of `values` are overwritten
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Sums sums[4] = {};
      if (!is_last) read_state(sums, d_state, k, 32 * half);
#pragma unroll
      for (int b = 0; b < 4; ++b) scale_tokens(sums[b], of_tokens(gates.e_rest, 32 * half + 8 * b));
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        const int j = 2 * half + b;
#pragma unroll
        for (int t = j; t < kTokenBlocks; ++t) {
          const RightFactors right = p.right(16 * t, 16 * j);
          multiply_add(sums[2 * b], d_out[t], right.at[0]);
          multiply_add(sums[2 * b + 1], d_out[t], right.at[1]);
        }
        d_delta[j] = rounded(sums[2 * b], sums[2 * b + 1]);
      }
    }

    const DeviceRows d_v_rows{d_v + in.value_row(at.begin, head), int64_t(in.Hv) * kDim};
    LeftFactor d_read[kTokenBlocks];  // (-diag(e^gamma) B y)^T
#pragma unroll
    for (int j = 0; j < kTokenBlocks; ++j) {
      Sums sums[2] = {};
#pragma unroll
      for (int t = j; t < kTokenBlocks; ++t) {
        const RightFactors right = tm.right(16 * t, 16 * j);
        multiply_add(sums[0], d_delta[t], right.at[0]);
        multiply_add(sums[1], d_delta[t], right.at[1]);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int token = 16 * j + 8 * i;
        const float2 e = of_tokens(gates.e_gamma, token);
        store_transposed(values, sums[i], token, v0);
        scale_tokens(sums[i], of_tokens(gates.beta, token));
        store_transposed(d_v_rows, sums[i], token, at.n, v0);
        scale_tokens(sums[i], make_float2(-e.x, -e.y));
      }
      d_read[j] = rounded(sums[0], sums[1]);
    }

    if (!is_first) {
      scale_state(d_state, gates.e_last());
      write_state(d_state, d_read, k);
#pragma unroll
      for (int t = 0; t < kTokenBlocks; ++t) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float2 e = of_tokens(gates.e_gamma, 16 * t + i / 2 * 8), pair = unpack_bf16(d_out[t].block[i]);
          d_out[t].block[i] = pack_bf16(in.s * e.x * pair.x, in.s * e.y * pair.y);
        }
      }
      write_state(d_state, d_out, q);
    }
    __syncthreads();
    store_rows<kScanThreads>(y + in.value_row(at.begin, head), int64_t(in.Hv) * kDim, values, at.n);
    __syncthreads();
    if (is_first) break;
    at.load<true>(shared, in, prepared, chunk - 1, head);
    at.load_values(shared, in, d_o, head);
  }
}

}  // namespace braid::cuda::delta_rule
