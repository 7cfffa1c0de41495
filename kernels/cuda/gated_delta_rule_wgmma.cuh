#pragma once

#include "kernels/cuda/gated_delta_rule_chunk.cuh"
#include "kernels/cuda/hopper.cuh"

// The two scans over the chunks of a document on Hopper. As in gated_delta_rule_scan.cuh everything is computed
// transposed, with the value dimension as rows: a warpgroup owns 64 of the 128 rows of the transposed state, in
// registers, so that every result is the left factor of the next product without leaving them, and all right factors
// are tiles that bulk copies brought to shared memory.
//
// A block has a warpgroup that brings things and kHalves that compute, each for one half of the value dimension of the
// same head; where there are fewer heads of documents than multiprocessors, blocks of one half use more of these. One
// block per multiprocessor takes one (document, head) after another, and what it brings runs kStages chunks ahead,
// across their borders. Of the warpgroup that brings, one thread copies and one warp makes the gates' factors.
//
// Registers: 232 for each computing thread, of which up to 220 are used: 64 of its half of the state, 32 of that half
// rounded, two sums of 32, factors. Shared memory: forward three stages of 64 KiB and the output, for the states four
// of 40, in reverse two of 64, and what is on its way out. The limit is device memory: 8 x 4096 tokens and 32 heads
// move 1.07 GB forward, 1.34 with states, 1.61 in reverse, at 2.6 to 2.7 GB/ms on an H100, where copies reach 3.0.
//
// Chunks that end early: what lies in a tile behind their last token is another document's or an earlier chunk's,
// finite, and multiplied by zero.
namespace braid::cuda::delta_rule {

inline constexpr int kHalf = kDim / 2;  // rows of the state per warpgroup
inline constexpr int kTileBytes = kChunk * 128;
inline constexpr int kStateBytes = kHalf * kDim * 2;  // of one half, as a border state

// ---- What the scans bring -------------------------------------------------------------------------------------------

// A chunk as its computing warpgroups see it.
struct alignas(16) ScanStep {
  float beta[kChunk], beta_e_gamma[kChunk];  // e_gamma = exp(gamma)
  float s_e_gamma[kChunk], e_rest[kChunk];   // e_rest = exp(Gamma - gamma)
  float e_last;                              // exp(Gamma)
  int begin, n, head;                        // n = 0: there is no more
  bool is_first, is_last;                    // of its document, in the order of the scan
};

// The states at the ends of rows that a scan starts from and comes to, in its order. Kernels are also made for rows
// without such states: there is no register to spare.
struct NoEnds {
  static constexpr bool kAreThere = false;
};
struct ScanEnds {
  static constexpr bool kAreThere = true;
  RowStates enter, leave;
  // What is kept, rounded, of those that it starts from: (B, Hv, kDim, kDim), as border states. Null: nothing.
  bf16* entered;
  bool values_are_zero;  // whatever there is
  bool leave_alone;      // nothing else is asked for: documents that come to no row's end are left out
  bool are_used() const { return enter.data || leave.data; }
};

struct ScanMaps {
  CUtensorMap q, k, values, o;  // (N, heads, kDim); a box: 64 tokens, one head, 64 numbers
};

// Tiles of a stage: k and, with kQueries, q (two each), tm and then p, and a half of the values per warpgroup.
template <bool kQueries, int kHalves>
struct ScanLayout {
  static constexpr int kK = 0, kTm = 2 * kTileBytes, kQ = 3 * kTileBytes, kP = 5 * kTileBytes;
  static constexpr int kValues = (kQueries ? 6 : 3) * kTileBytes;
  static constexpr int kBytes = kValues + kHalves * kTileBytes;
};

template <class Layout, int kHalves, int kStages, int kStagingBytes>
struct ScanMemory {
  static constexpr int kBytes =
      kSwizzleBytes + kStages * Layout::kBytes + kHalves * kStagingBytes + kStages * int(sizeof(ScanStep));
  static_assert(kBytes <= 227 * 1024);
  uint32_t tiles, staging;
  ScanStep* steps;

  __device__ explicit ScanMemory(unsigned char* unaligned) {
    const uint32_t shift = (kSwizzleBytes - shared_address(unaligned) % kSwizzleBytes) % kSwizzleBytes;
    tiles = shared_address(unaligned) + shift;
    staging = tiles + kStages * Layout::kBytes;
    steps = reinterpret_cast<ScanStep*>(unaligned + shift + kStages * Layout::kBytes + kHalves * kStagingBytes);
    // What is read behind the end of a chunk must be finite from the start.
    for (int i = threadIdx.x * 16; i < kStages * Layout::kBytes; i += blockDim.x * 16)
      *reinterpret_cast<uint4*>(unaligned + shift + i) = make_uint4(0, 0, 0, 0);
    fence_shared_writes();
  }
};

template <int kStages>
struct Turn {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void next() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

// Calls visit(chunk, head, half, is_first, is_last) for all chunks of all jobs of this block. The longest documents
// come first, and every other turn goes through the blocks backwards, so that all have about as much to do. Blocks of
// one half have one job each, so that half is blockIdx.x % 2.
template <bool kReverse, int kHalves, class Ends, class Visit>
__device__ __forceinline__ void for_each_chunk(const Inputs& in, const Ends& ends, int num_documents, Visit&& visit) {
  constexpr int kParts = 2 / kHalves;
  const int blocks = gridDim.x, num_jobs = num_documents * in.Hv * kParts;
  for (int turn = 0; turn * blocks < num_jobs; ++turn) {
    const int job = turn * blocks + static_cast<int>(turn % 2 ? blocks - 1 - blockIdx.x : blockIdx.x);
    if (job >= num_jobs) continue;
    const int document = in.by_length[job / (in.Hv * kParts)], head = job / kParts % in.Hv, half = job % kParts;
    const int first = in.first_chunk[document], end = in.first_chunk[document + 1];
    if constexpr (Ends::kAreThere)
      if (ends.leave_alone && !ends.leave.has(in.chunk_begin[kReverse ? first : end])) continue;
    for (int i = first; i < end; ++i) visit(kReverse ? first + end - 1 - i : i, head, half, i == first, i + 1 == end);
  }
}

template <bool kReverse, bool kQueries, int kHalves, int kStages, class Ends, class Shared>
__device__ __forceinline__ void bring_tiles(const Inputs& in, const Prepared& prepared, const ScanMaps& maps,
                                            const Ends& ends, int num_documents, const Shared& shared, uint64_t* filled,
                                            uint64_t* free) {
  using Layout = ScanLayout<kQueries, kHalves>;
  Turn<kStages> turn;
  for_each_chunk<kReverse, kHalves>(in, ends, num_documents, [&](int chunk, int head, int half, bool, bool) {
    const int begin = in.chunk_begin[chunk], n = in.chunk_begin[chunk + 1] - begin, key_head = head / in.group();
    const int64_t square = in.scalar_row(begin, head) * kChunk;
    uint64_t* const barrier = &filled[turn.stage];
    const uint32_t to = shared.tiles + turn.stage * Layout::kBytes;
    int first_value = begin;
    if constexpr (Ends::kAreThere)
      if (ends.values_are_zero) first_value = static_cast<int>(in.N);  // behind the last token, boxes are filled with 0
    wait(&free[turn.stage], turn.parity ^ 1);
    arrive_expecting(barrier, Layout::kBytes - (kQueries ? 2 : 1) * (kChunk - n) * 128);
#pragma unroll
    for (int i = 0; i < 2; ++i) copy_box(to + Layout::kK + i * kTileBytes, maps.k, barrier, i * 64, key_head, begin);
#pragma unroll
    for (int i = 0; i < kHalves; ++i)
      copy_box(to + Layout::kValues + i * kTileBytes, maps.values, barrier, (half + i) * kHalf, head, first_value);
    copy_bytes(to + Layout::kTm, prepared.tm + square, n * 128, barrier);
    if constexpr (kQueries) {
#pragma unroll
      for (int i = 0; i < 2; ++i) copy_box(to + Layout::kQ + i * kTileBytes, maps.q, barrier, i * 64, key_head, begin);
      copy_bytes(to + Layout::kP, prepared.p + square, n * 128, barrier);
    }
    turn.next();
  });
}

template <bool kReverse, int kHalves, int kStages, class Ends, class Shared>
__device__ __forceinline__ void bring_gates(const Inputs& in, const Prepared& prepared, const Ends& ends,
                                            int num_documents, const Shared& shared, uint64_t* filled, uint64_t* free) {
  const int lane = threadIdx.x % kWarpSize;
  Turn<kStages> turn;
  for_each_chunk<kReverse, kHalves>(
      in, ends, num_documents, [&](int chunk, int head, int, bool is_first, bool is_last) {
        const int begin = in.chunk_begin[chunk], n = in.chunk_begin[chunk + 1] - begin;
        const float2* gates = prepared.gates + in.scalar_row(begin, head);
        const float last = gates[n - 1].x;
        float2 own[2];
#pragma unroll
        for (int i = 0; i < 2; ++i)
          own[i] = lane + i * kWarpSize < n ? gates[lane + i * kWarpSize] : make_float2(last, 0.0f);
        wait(&free[turn.stage], turn.parity ^ 1);
        ScanStep& step = shared.steps[turn.stage];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int token = lane + i * kWarpSize;
          const float e_gamma = __expf(own[i].x);
          step.beta[token] = own[i].y;
          step.beta_e_gamma[token] = own[i].y * e_gamma;
          step.s_e_gamma[token] = token < n ? in.s * e_gamma : 0.0f;
          step.e_rest[token] = token < n ? __expf(last - own[i].x) : 0.0f;
        }
        if (lane == 0) {
          step.e_last = __expf(last);
          step.begin = begin, step.n = n, step.head = head;
          step.is_first = is_first, step.is_last = is_last;
        }
        __syncwarp();
        if (lane == 0) arrive(&filled[turn.stage]);
        turn.next();
      });
  wait(&free[turn.stage], turn.parity ^ 1);
  if (lane == 0) {
    shared.steps[turn.stage].n = 0;
    arrive(&filled[turn.stage]);
    arrive_expecting(&filled[turn.stage], 0);  // for the copies
  }
}

// ---- What a computing warpgroup does --------------------------------------------------------------------------------

using HalfState = float[kDim / 2];     // sums (64, kDim) of a warpgroup
using HalfValues = float[kChunk / 2];  // (64, tokens)

// The lane's place in a half of the values: rows of values are lines, 16 of this warp's 64 columns at a time.
__device__ __forceinline__ uint32_t value_place(uint32_t tile) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x % kWarpgroup / kWarpSize;
  return chunk_address(tile, lane % 8 + lane / 16 * 8, 2 * warp + lane / 8 % 2);
}
inline constexpr uint32_t kSixteenLines = 16 * 128;

__device__ __forceinline__ float2 token_pair(const float* per_token, int block) {
  return *reinterpret_cast<const float2*>(per_token + 8 * block + threadIdx.x % 4 * 2);
}

// Blocks 2 i and 2 i + 1 of sums as a factor.
__device__ __forceinline__ LeftFactor rounded_pair(const float* c, int i) {
  c += 8 * i;
  return {{pack_bf16(c[0], c[1]), pack_bf16(c[2], c[3]), pack_bf16(c[4], c[5]), pack_bf16(c[6], c[7])}};
}
// The same with the columns scaled.
__device__ __forceinline__ LeftFactor rounded_pair(const float* c, int i, float2 low, float2 high) {
  c += 8 * i;
  return {{pack_bf16(c[0] * low.x, c[1] * low.y), pack_bf16(c[2] * low.x, c[3] * low.y),
           pack_bf16(c[4] * high.x, c[5] * high.y), pack_bf16(c[6] * high.x, c[7] * high.y)}};
}

// sums (64, tokens) = state rows^T, over the rows of two tiles of tokens
__device__ __forceinline__ void read_state(HalfValues& sums, const LeftFactor (&state)[kDim / 16], uint32_t rows) {
#pragma unroll
  for (int a = 0; a < kDim / 16; ++a)
    multiply_add<kChunk, Major::kK>(
        sums, state[a], factor<Major::kK>(rows + a / 4 * kTileBytes + a % 4 * kFactorStep<Major::kK>, 0), a > 0);
}
// state += factors (64, tokens) rows
__device__ __forceinline__ void write_state(HalfState& state, const LeftFactor (&factors)[kTokenBlocks],
                                            uint32_t rows) {
#pragma unroll
  for (int t = 0; t < kTokenBlocks; ++t)
    multiply_add<kDim, Major::kMn>(state, factors[t],
                                   factor<Major::kMn>(rows + t * kFactorStep<Major::kMn>, kTileBytes), true);
}
// sums (64, tokens) (+)= values square^T, of a lower triangular square. All columns each time: with
// products on a part of an accumulator ptxas waits after every one.
template <bool kAdd>
__device__ __forceinline__ void multiply_lower(HalfValues& sums, const LeftFactor (&values)[kTokenBlocks],
                                               uint32_t square) {
#pragma unroll
  for (int j = 0; j < kTokenBlocks; ++j)
    multiply_add<kChunk, Major::kK>(sums, values[j], factor<Major::kK>(square + j * kFactorStep<Major::kK>, 0),
                                    kAdd || j > 0);
}
// sums (64, tokens) = values square
__device__ __forceinline__ void multiply_lower_transposed(HalfValues& sums, const LeftFactor (&values)[kTokenBlocks],
                                                          uint32_t square) {
#pragma unroll
  for (int t = 0; t < kTokenBlocks; ++t)
    multiply_add<kChunk, Major::kMn>(sums, values[t], factor<Major::kMn>(square + t * kSixteenLines, 0), t > 0);
}

// A half of a state as two tiles, each 64 lines of its rows.
__device__ __forceinline__ void stage_state(uint32_t to, const LeftFactor (&state)[kDim / 16]) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x % kWarpgroup / kWarpSize;
#pragma unroll
  for (int a = 0; a < kDim / 16; ++a)
    store_factor(chunk_address(to + a / 4 * kTileBytes, 16 * warp + lane % 16, a % 4 * 2 + lane / 16), state[a]);
}

// Calls visit(i, place) for every element i of a thread's part of a half of a state; place: in a state (Dk, Dv).
template <class Visit>
__device__ __forceinline__ void for_each_element(int half, Visit&& visit) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x % kWarpgroup / kWarpSize;
  const int first = lane % 4 * 2 * kDim + half * kHalf + 16 * warp + lane / 4;
#pragma unroll
  for (int i = 0; i < kDim / 2; ++i) visit(i, first + (i / 4 * 8 + i % 2) * kDim + i / 2 % 2 * 8);
}

// Waits until the warpgroup's staging may be written again; shows what was written to the copies that one thread then
// starts.
__device__ __forceinline__ void open_staging(int warpgroup) {
  if (threadIdx.x % kWarpgroup == 0) wait_for_added<0>();
  sync_threads(1 + warpgroup, kWarpgroup);
}
__device__ __forceinline__ void close_staging(int warpgroup) {
  fence_shared_writes();
  sync_threads(1 + warpgroup, kWarpgroup);
}

// Starts a half of a state from `from` and keeps it, rounded, at `kept`, if there is such.
__device__ __forceinline__ void enter_state(HalfState& state, LeftFactor (&rounded_state)[kDim / 16], const float* from,
                                            bf16* kept, int half, uint32_t staging, int warpgroup) {
  for_each_element(half, [&](int i, int place) { state[i] = from[place]; });
#pragma unroll
  for (int a = 0; a < kDim / 16; ++a) rounded_state[a] = rounded_pair(state, a);
  if (!kept) return;
  open_staging(warpgroup);
  stage_state(staging, rounded_state);
  close_staging(warpgroup);
  if (threadIdx.x % kWarpgroup == 0) store_bytes(kept + half * (kHalf * kDim), staging, kStateBytes);
}

// Border states on Hopper: bf16, as the two halves that scans stage.
__device__ __forceinline__ bf16* half_state(const BorderStates& states, int64_t token, int head, int half, int Hv) {
  return states.at(token, head, Hv) + half * (kHalf * kDim);
}
// Values that kernels keep for each other: (Hv, 2, N, kHalf), lines of tiles as `square_column` has them.
__device__ __forceinline__ int64_t half_values(const Inputs& in, int64_t token, int head, int half) {
  return ((head * 2 + half) * in.N + token) * kHalf;
}

template <int kHalves>
inline constexpr int kScanBlock = (1 + kHalves) * kWarpgroup;

// Forward with outputs: o. Without, for backward: delta and the states at the borders. See gated_delta_rule_scan.cuh.
template <bool kWithOutputs, int kHalves>
struct ScanTraits {
  static constexpr int kStages = kWithOutputs ? 3 : 4;
  static constexpr int kStagingBytes = kWithOutputs ? kTileBytes : kTileBytes + kStateBytes;
  using Layout = ScanLayout<kWithOutputs, kHalves>;
  using Shared = ScanMemory<Layout, kHalves, kStages, kStagingBytes>;
};

// A stage is filled by the thread that brings tiles and the warp that brings gates, and freed by every warp that
// computes.
template <int kHalves, int kStages>
__device__ __forceinline__ void init_scan_barriers(uint64_t (&filled)[kStages], uint64_t (&free)[kStages]) {
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      init_barrier(&filled[i], 2);
      init_barrier(&free[i], kHalves * 4);
    }
    fence_barrier_init();
  }
  __syncthreads();
}

template <bool kWithOutputs, int kHalves, class Ends>
__global__ void __launch_bounds__(kScanBlock<kHalves>, 1)
    wgmma_scan_kernel(const __grid_constant__ ScanMaps maps, Inputs in, Prepared prepared,
                      const __grid_constant__ Ends ends, int num_documents, bf16* o, bf16* delta_out,
                      BorderStates states) {
  if constexpr (kOnHopper) {
    using Traits = ScanTraits<kWithOutputs, kHalves>;
    using Layout = typename Traits::Layout;
    constexpr int kStages = Traits::kStages;
    extern __shared__ unsigned char unaligned[];
    __shared__ uint64_t filled[kStages], free[kStages];
    const typename Traits::Shared shared(unaligned);
    init_scan_barriers<kHalves>(filled, free);

    if (threadIdx.x < kWarpgroup) {
      if constexpr (kHalves == 2) leave_registers<40>();
      if (threadIdx.x == 0)
        bring_tiles<false, kWithOutputs, kHalves, kStages>(in, prepared, maps, ends, num_documents, shared, filled,
                                                           free);
      if (threadIdx.x / kWarpSize == 1)
        bring_gates<false, kHalves, kStages>(in, prepared, ends, num_documents, shared, filled, free);
      return;
    }
    if constexpr (kHalves == 2) take_registers<232>();
    const int warpgroup = threadIdx.x / kWarpgroup - 1;
    const uint32_t staging = shared.staging + warpgroup * Traits::kStagingBytes;
    const int first_half = kHalves == 2 ? warpgroup : blockIdx.x % 2;
    HalfState state = {};
    LeftFactor rounded_state[kDim / 16] = {};
    Turn<kStages> turn;
    for (;; turn.next()) {
      wait(&filled[turn.stage], turn.parity);
      const ScanStep& step = shared.steps[turn.stage];
      if (step.n == 0) break;
      const uint32_t tiles = shared.tiles + turn.stage * Layout::kBytes;
      const uint32_t values = value_place(tiles + Layout::kValues + warpgroup * kTileBytes);
      if constexpr (Ends::kAreThere) {
        if (step.is_first && ends.enter.has(step.begin)) {
          const int row = step.begin / ends.enter.row_tokens * in.Hv + step.head;
          enter_state(state, rounded_state, ends.enter.data + int64_t(row) * kDim * kDim,
                      !kWithOutputs && ends.entered ? ends.entered + int64_t(row) * kDim * kDim : nullptr, first_half,
                      staging + kTileBytes, warpgroup);
        }
      }

      HalfValues sums, out;
      begin_products();
      read_state(sums, rounded_state, tiles + Layout::kK);
      commit_products();
      if constexpr (kWithOutputs) {
        read_state(out, rounded_state, tiles + Layout::kQ);
        commit_products();
      }
      const float e_last = step.e_last;
#pragma unroll
      for (int i = 0; i < kDim / 2; ++i) state[i] *= e_last;
      wait_for_products<kWithOutputs ? 1 : 0>();
      hold(sums);
      LeftFactor solve_for[kTokenBlocks];  // (B (V - diag(e^gamma) K S0))^T
#pragma unroll
      for (int t = 0; t < kTokenBlocks; ++t) {
        const LeftFactor value = load_factor_transposed(values + t * kSixteenLines);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float2 beta = token_pair(step.beta, 2 * t + i), e = token_pair(step.beta_e_gamma, 2 * t + i);
          const float2 low = unpack_bf16(value.block[2 * i]), high = unpack_bf16(value.block[2 * i + 1]);
          float* s = sums + 8 * t + 4 * i;
          s[0] = beta.x * low.x - e.x * s[0], s[1] = beta.y * low.y - e.y * s[1];
          s[2] = beta.x * high.x - e.x * s[2], s[3] = beta.y * high.y - e.y * s[3];
        }
        solve_for[t] = rounded_pair(sums, t);
      }
      begin_products();
      multiply_lower<false>(sums, solve_for, tiles + Layout::kTm);
      commit_products();
      if constexpr (kWithOutputs) {
        wait_for_products<1>();
        hold(out);
#pragma unroll
        for (int b = 0; b < 2 * kTokenBlocks; ++b) {
          const float2 e = token_pair(step.s_e_gamma, b);
          out[4 * b] *= e.x, out[4 * b + 1] *= e.y, out[4 * b + 2] *= e.x, out[4 * b + 3] *= e.y;
        }
      }
      wait_for_products<0>();
      hold(sums);
      LeftFactor delta[kTokenBlocks], scaled[kTokenBlocks];  // delta^T, and with diag(e^(Gamma - gamma))
#pragma unroll
      for (int t = 0; t < kTokenBlocks; ++t) {
        delta[t] = rounded_pair(sums, t);
        scaled[t] = rounded_pair(sums, t, token_pair(step.e_rest, 2 * t), token_pair(step.e_rest, 2 * t + 1));
      }
      begin_products();
      if constexpr (kWithOutputs) {
        multiply_lower<true>(out, delta, tiles + Layout::kP);
        commit_products();
      }
      write_state(state, scaled, tiles + Layout::kK);
      commit_products();

      const int begin = step.begin, n = step.n, head = step.head;
      const bool is_last = step.is_last;
      if constexpr (kWithOutputs) {
        wait_for_products<1>();
        hold(out);
        open_staging(warpgroup);
        const uint32_t place = value_place(staging);
#pragma unroll
        for (int t = 0; t < kTokenBlocks; ++t) store_factor_transposed(place + t * kSixteenLines, rounded_pair(out, t));
        close_staging(warpgroup);
        if (n == kChunk) {
          if (threadIdx.x % kWarpgroup == 0) store_box(maps.o, staging, first_half * kHalf, head, begin);
        } else {
          const unsigned char* from = unaligned + (staging - shared_address(unaligned));
          for (int i = threadIdx.x % kWarpgroup; i < n * 8; i += kWarpgroup)
            *reinterpret_cast<uint4*>(o + in.value_row(begin + i / 8, head) + first_half * kHalf + i % 8 * 8) =
                *reinterpret_cast<const uint4*>(from + i / 8 * 128 + ((i ^ i / 8) & 7) * 16);
        }
      }
      wait_for_products<0>();
      hold(state);
      if constexpr (Ends::kAreThere) {  // here, as behind the next lines it would cost registers
        if (is_last && ends.leave.has(begin + n)) {
          float* const to = ends.leave.behind(begin + n, head, in.Hv, kDim * kDim);
          for_each_element(first_half, [&](int i, int place) { to[place] = state[i]; });
        }
      }
      __syncwarp();
      if (threadIdx.x % kWarpSize == 0) arrive(&free[turn.stage]);
      if (is_last) {
#pragma unroll
        for (int i = 0; i < kDim / 2; ++i) state[i] = 0;
      }
#pragma unroll
      for (int a = 0; a < kDim / 16; ++a) rounded_state[a] = rounded_pair(state, a);
      if constexpr (!kWithOutputs) {
        if constexpr (Ends::kAreThere)
          if (ends.leave_alone) continue;
        open_staging(warpgroup);
        const uint32_t place = value_place(staging);
#pragma unroll
        for (int t = 0; t < kTokenBlocks; ++t) store_factor_transposed(place + t * kSixteenLines, delta[t]);
        if (!is_last) stage_state(staging + kTileBytes, rounded_state);
        close_staging(warpgroup);
        if (threadIdx.x % kWarpgroup == 0) {
          store_bytes(delta_out + half_values(in, begin, head, first_half), staging, n * 128);
          if (!is_last)
            store_bytes(half_state(states, begin + n, head, first_half, in.Hv), staging + kTileBytes, kStateBytes);
        }
      }
    }
    if (threadIdx.x % kWarpgroup == 0) wait_for_added<0>();
  }
}

// The gradients of the state, from the last chunk of a document to the first; see gated_delta_rule_scan.cuh. Writes y
// and dS at every border.
template <int kHalves>
struct ReverseScanTraits {
  static constexpr int kStages = kHalves == 2 ? 2 : 3;
  static constexpr int kStagingBytes = kTileBytes + kStateBytes;
  using Layout = ScanLayout<true, kHalves>;
  using Shared = ScanMemory<Layout, kHalves, kStages, kStagingBytes>;
};

template <int kHalves, class Ends>
__global__ void __launch_bounds__(kScanBlock<kHalves>, 1)
    wgmma_reverse_scan_kernel(const __grid_constant__ ScanMaps maps, Inputs in, Prepared prepared,
                              const __grid_constant__ Ends ends, int num_documents, bf16* y_out,
                              BorderStates d_states) {
  if constexpr (kOnHopper) {
    using Traits = ReverseScanTraits<kHalves>;
    using Layout = typename Traits::Layout;
    constexpr int kStages = Traits::kStages;
    extern __shared__ unsigned char unaligned[];
    __shared__ uint64_t filled[kStages], free[kStages];
    const typename Traits::Shared shared(unaligned);
    init_scan_barriers<kHalves>(filled, free);

    if (threadIdx.x < kWarpgroup) {
      if constexpr (kHalves == 2) leave_registers<40>();
      if (threadIdx.x == 0)
        bring_tiles<true, true, kHalves, kStages>(in, prepared, maps, ends, num_documents, shared, filled, free);
      if (threadIdx.x / kWarpSize == 1)
        bring_gates<true, kHalves, kStages>(in, prepared, ends, num_documents, shared, filled, free);
      return;
    }
    if constexpr (kHalves == 2) take_registers<232>();
    const int warpgroup = threadIdx.x / kWarpgroup - 1;
    const uint32_t staging = shared.staging + warpgroup * Traits::kStagingBytes;
    const int half = kHalves == 2 ? warpgroup : blockIdx.x % 2;
    HalfState d_state = {};
    LeftFactor rounded_state[kDim / 16] = {};
    Turn<kStages> turn;
    for (;; turn.next()) {
      wait(&filled[turn.stage], turn.parity);
      const ScanStep& step = shared.steps[turn.stage];
      if (step.n == 0) break;
      const uint32_t tiles = shared.tiles + turn.stage * Layout::kBytes;
      const uint32_t values = value_place(tiles + Layout::kValues + warpgroup * kTileBytes);
      const int begin = step.begin, n = step.n, head = step.head;
      const bool is_last = step.is_last;
      bool leave_alone = false;
      if constexpr (Ends::kAreThere) {
        leave_alone = ends.leave_alone;
        if (step.is_first && ends.enter.has(begin + n)) {
          const int row = ((begin + n) / ends.enter.row_tokens - 1) * in.Hv + head;
          enter_state(d_state, rounded_state, ends.enter.data + int64_t(row) * kDim * kDim,
                      ends.entered ? ends.entered + int64_t(row) * kDim * kDim : nullptr, half, staging + kTileBytes,
                      warpgroup);
        }
      }

      LeftFactor d_out[kTokenBlocks];  // transposed
#pragma unroll
      for (int t = 0; t < kTokenBlocks; ++t) d_out[t] = load_factor_transposed(values + t * kSixteenLines);
      if (n < kChunk) {
#pragma unroll
        for (int t = 0; t < kTokenBlocks; ++t) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int token = 16 * t + i / 2 * 8 + threadIdx.x % 4 * 2;
            if (token >= n) d_out[t].block[i] = 0;
            else if (token + 1 >= n) d_out[t].block[i] &= 0xffff;
          }
        }
      }
      HalfValues sums, local;
      begin_products();
      read_state(sums, rounded_state, tiles + Layout::kK);
      multiply_lower_transposed(local, d_out, tiles + Layout::kP);
      commit_products();
      const float e_last = step.e_last;
#pragma unroll
      for (int i = 0; i < kDim / 2; ++i) d_state[i] *= e_last;
      LeftFactor d_read[kTokenBlocks];  // (s diag(e^gamma) dO)^T, then (-diag(e^gamma) B y)^T
#pragma unroll
      for (int t = 0; t < kTokenBlocks; ++t) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float2 e = token_pair(step.s_e_gamma, 2 * t + i / 2), pair = unpack_bf16(d_out[t].block[i]);
          d_read[t].block[i] = pack_bf16(e.x * pair.x, e.y * pair.y);
        }
      }
      begin_products();
      write_state(d_state, d_read, tiles + Layout::kQ);
      commit_products();
      wait_for_products<1>();
      hold(sums);
      hold(local);
      LeftFactor d_delta[kTokenBlocks];  // transposed
#pragma unroll
      for (int t = 0; t < kTokenBlocks; ++t) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float2 e = token_pair(step.e_rest, 2 * t + i);
          float *s = sums + 8 * t + 4 * i, *l = local + 8 * t + 4 * i;
          s[0] = e.x * s[0] + l[0], s[1] = e.y * s[1] + l[1], s[2] = e.x * s[2] + l[2], s[3] = e.y * s[3] + l[3];
        }
        d_delta[t] = rounded_pair(sums, t);
      }
      begin_products();
      multiply_lower_transposed(sums, d_delta, tiles + Layout::kTm);
      commit_products();
      wait_for_products<0>();
      hold(sums);
      hold(d_state);
      LeftFactor y[kTokenBlocks];
#pragma unroll
      for (int t = 0; t < kTokenBlocks; ++t) {
        y[t] = rounded_pair(sums, t);
        const float2 low = token_pair(step.beta_e_gamma, 2 * t), high = token_pair(step.beta_e_gamma, 2 * t + 1);
        d_read[t] = rounded_pair(sums, t, make_float2(-low.x, -low.y), make_float2(-high.x, -high.y));
      }
      begin_products();
      write_state(d_state, d_read, tiles + Layout::kK);
      commit_products();
      if (!leave_alone) {
        open_staging(warpgroup);
        const uint32_t place = value_place(staging);
#pragma unroll
        for (int t = 0; t < kTokenBlocks; ++t) store_factor_transposed(place + t * kSixteenLines, y[t]);
      }
      wait_for_products<0>();
      hold(d_state);
      if constexpr (Ends::kAreThere) {  // here, as behind the next lines it would cost registers
        if (is_last && ends.leave.has(begin)) {
          float* const to = ends.leave.before(begin, head, in.Hv, kDim * kDim);
          for_each_element(half, [&](int i, int place) { to[place] = d_state[i]; });
        }
      }
      __syncwarp();
      if (threadIdx.x % kWarpSize == 0) arrive(&free[turn.stage]);
      if (is_last) {
#pragma unroll
        for (int i = 0; i < kDim / 2; ++i) d_state[i] = 0;
      }
#pragma unroll
      for (int a = 0; a < kDim / 16; ++a) rounded_state[a] = rounded_pair(d_state, a);
      if (leave_alone) continue;
      if (!is_last) stage_state(staging + kTileBytes, rounded_state);
      close_staging(warpgroup);
      if (threadIdx.x % kWarpgroup == 0) {
        store_bytes(y_out + half_values(in, begin, head, half), staging, n * 128);
        if (!is_last) store_bytes(half_state(d_states, begin, head, half, in.Hv), staging + kTileBytes, kStateBytes);
      }
    }
    if (threadIdx.x % kWarpgroup == 0) wait_for_added<0>();
  }
}

}  // namespace braid::cuda::delta_rule
