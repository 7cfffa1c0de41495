#pragma once

#include "kernels/cuda/gated_delta_rule_gradient.cuh"
#include "kernels/cuda/gated_delta_rule_wgmma.cuh"

// The gradients that need no order, on Hopper; the formulas are those of gradient_kernel.
//
// A block per multiprocessor takes one (chunk, key head) after another, and the value heads of the key head one by one.
// Its first warpgroup brings and finishes: one thread copies, one warp makes the gates' factors, one puts the gates'
// gradients together. The second warpgroup makes what goes through y (the gradients of K, V and beta), the third what
// goes through dO (of Q, and <dS, S0>); each has all 64 tokens, 16 rows a warp, and keeps its gradient of the keys or
// queries and of the square product in registers over the value heads. Registers decide: beside 224 KiB of shared
// memory hardly any first-level cache is left, so that what does not fit into them waits for the second level. More and
// narrower warpgroups (three or four with 160 or 112 registers a thread) spilled, and were slower for that.
//
// Shared memory: K and Q twice, and nine units of 16 KiB through which pass, for one head after another, delta, y, dO,
// and by halves of the key dimension S0 and dS; so the next head's come while this one's are multiplied. After the last
// head a unit is lent to two squares. It reads 2.5 KB per token and value head, which takes longer than its 131 kFLOP.
namespace braid::cuda::delta_rule {

inline constexpr int kUnits = 9, kUnitBytes = 2 * kTileBytes;
static_assert(kUnitBytes == kStateBytes);
inline constexpr int kKeyStages = 2, kGateStages = 2;
inline constexpr int kGradientConsumers = 2, kConsumerWarps = kGradientConsumers * 4;

struct GradientMaps {
  CUtensorMap q, k, d_o, d_q, d_k;  // as in ScanMaps
};

struct GradientChunk {
  int key_head, begin, n;
  bool is_first, is_last;     // of its document, and there is no state before it, or no gradient from behind it
  int entered_row, left_row;  // of the batch, that begins or ends with it and has a state or its gradient there; or -1
};
// At the ends of rows: what scans kept of the states that they started from. Null: those are zero.
struct NoneEntered {
  static constexpr bool kAreThere = false;
};
struct EnteredStates {
  static constexpr bool kAreThere = true;
  const bf16 *states, *d_states;
  int row_tokens;
};

// Gates of one value head, and its chunk.
struct alignas(16) GradientStep {
  float gamma[kChunk], beta[kChunk], e_gamma[kChunk], e_rest[kChunk];
  float e_last;
  GradientChunk chunk;  // n = 0: there is no more
};

// What the gates' gradients are made of: from each computing warpgroup what belongs to a token as a row; sums over the
// columns of the squares, by 16 rows; parts of the gradient of Gamma.
struct GradientSums {
  float rows[kGradientConsumers][kChunk], columns[2][4][kChunk], beta[kChunk], last[2][4];
};

struct GradientMemory {
  static constexpr int kTilesBytes = kUnits * kUnitBytes + kKeyStages * 2 * kUnitBytes;
  static constexpr int kBytes =
      kSwizzleBytes + kTilesBytes + kGateStages * int(sizeof(GradientStep) + sizeof(GradientSums));
  static_assert(kBytes <= 226 * 1024);
  unsigned char* begin;
  uint32_t units, keys;
  GradientStep* steps;
  GradientSums* sums;

  __device__ explicit GradientMemory(unsigned char* unaligned) {
    begin = unaligned + (kSwizzleBytes - shared_address(unaligned) % kSwizzleBytes) % kSwizzleBytes;
    units = shared_address(begin);
    keys = units + kUnits * kUnitBytes;
    steps = reinterpret_cast<GradientStep*>(begin + kTilesBytes);
    sums = reinterpret_cast<GradientSums*>(steps + kGateStages);
    for (int i = threadIdx.x * 16; i < kTilesBytes; i += blockDim.x * 16)
      *reinterpret_cast<uint4*>(begin + i) = make_uint4(0, 0, 0, 0);
    fence_shared_writes();
  }
};

struct GradientBarriers {
  uint64_t unit_filled[kUnits], unit_free[kUnits];
  uint64_t keys_filled[kKeyStages], keys_free[kKeyStages];
  uint64_t gates_filled[kGateStages], gates_free[kGateStages];
  uint64_t sums_filled[kGateStages], sums_free[kGateStages];

  __device__ void init() {
    for (int i = 0; i < kUnits; ++i) init_barrier(&unit_filled[i], 1), init_barrier(&unit_free[i], kConsumerWarps);
    for (int i = 0; i < kKeyStages; ++i)
      init_barrier(&keys_filled[i], 1), init_barrier(&keys_free[i], kGradientConsumers);
    for (int i = 0; i < kGateStages; ++i) {
      init_barrier(&gates_filled[i], 1), init_barrier(&gates_free[i], kConsumerWarps);
      init_barrier(&sums_filled[i], kConsumerWarps), init_barrier(&sums_free[i], 1);
    }
    fence_barrier_init();
  }
};

template <class Entered, class Visit>
__device__ __forceinline__ void for_each_gradient(const Inputs& in, const Entered& entered, Visit&& visit) {
  for (int job = blockIdx.x; job < in.num_chunks * in.Hk; job += gridDim.x) {
    const int chunk = job / in.Hk, begin = in.chunk_begin[chunk], end = in.chunk_begin[chunk + 1];
    int entered_row = -1, left_row = -1;
    if constexpr (Entered::kAreThere) {
      if (entered.states && begin % entered.row_tokens == 0) entered_row = begin / entered.row_tokens;
      if (entered.d_states && end % entered.row_tokens == 0) left_row = end / entered.row_tokens - 1;
    }
    const bool begins = in.document_begin[begin] == begin;
    const bool ends = chunk + 1 == in.num_chunks || in.document_begin[end] == end;
    visit(GradientChunk{job % in.Hk, begin, end - begin, begins && entered_row < 0, ends && left_row < 0, entered_row,
                        left_row});
  }
}

template <class Entered>
__device__ __forceinline__ void bring_gradient_tiles(const Inputs& in, const GradientMaps& maps, const Scanned& scanned,
                                                     const Entered& entered, const GradientMemory& shared,
                                                     GradientBarriers& barriers) {
  Turn<kKeyStages> keys;
  Turn<kUnits> unit;
  // Calls copy(address, barrier) for the next unit, which gets so many bytes.
  auto bring = [&](int bytes, auto&& copy) {
    uint64_t* const barrier = &barriers.unit_filled[unit.stage];
    wait(&barriers.unit_free[unit.stage], unit.parity ^ 1);
    arrive_expecting(barrier, bytes);
    copy(shared.units + unit.stage * kUnitBytes, barrier);
    unit.next();
  };
  for_each_gradient(in, entered, [&](const GradientChunk& c) {
    uint64_t* const keys_filled = &barriers.keys_filled[keys.stage];
    wait(&barriers.keys_free[keys.stage], keys.parity ^ 1);
    arrive_expecting(keys_filled, 2 * kUnitBytes);
    const uint32_t to_keys = shared.keys + keys.stage * 2 * kUnitBytes;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      copy_box(to_keys + i * kTileBytes, maps.k, keys_filled, i * kHalf, c.key_head, c.begin);
      copy_box(to_keys + kUnitBytes + i * kTileBytes, maps.q, keys_filled, i * kHalf, c.key_head, c.begin);
    }
    keys.next();
    for (int r = 0; r < in.group(); ++r) {
      const int head = c.key_head * in.group() + r;
      for (const bf16* values : {scanned.delta, scanned.y}) {
        bring(2 * c.n * 128, [&](uint32_t to, uint64_t* barrier) {
#pragma unroll
          for (int half = 0; half < 2; ++half)
            copy_bytes(to + half * kTileBytes, values + half_values(in, c.begin, head, half), c.n * 128, barrier);
        });
      }
      bring(kUnitBytes, [&](uint32_t to, uint64_t* barrier) {
#pragma unroll
        for (int half = 0; half < 2; ++half)
          copy_box(to + half * kTileBytes, maps.d_o, barrier, half * kHalf, head, c.begin);
      });
      auto bring_state = [&](const bf16* state, int block) {
        bring(kUnitBytes, [&](uint32_t to, uint64_t* barrier) {
#pragma unroll
          for (int half = 0; half < 2; ++half)
            copy_bytes(to + half * kTileBytes, state + half * (kHalf * kDim) + block * (kHalf * kHalf), kTileBytes,
                       barrier);
        });
      };
      const bf16 *state = scanned.states.at(c.begin, head, in.Hv),
                 *d_state = scanned.d_states.at(c.begin + c.n, head, in.Hv);
      if constexpr (Entered::kAreThere) {
        const auto place = [&](int row) { return (int64_t(row) * in.Hv + head) * (kDim * kDim); };
        if (c.entered_row >= 0) state = entered.states + place(c.entered_row);
        if (c.left_row >= 0) d_state = entered.d_states + place(c.left_row);
      }
      for (int block = 0; block < 2; ++block) {
        if (!c.is_first) bring_state(state, block);
        if (!c.is_last) bring_state(d_state, block);
      }
    }
    bring(0, [](uint32_t, uint64_t*) {});  // the squares
  });
}

template <class Entered>
__device__ __forceinline__ void bring_gradient_gates(const Inputs& in, const float2* all_gates, const Entered& entered,
                                                     const GradientMemory& shared, GradientBarriers& barriers) {
  const int lane = threadIdx.x % kWarpSize;
  Turn<kGateStages> turn;
  for_each_gradient(in, entered, [&](const GradientChunk& c) {
    for (int r = 0; r < in.group(); ++r) {
      const float2* gates = all_gates + in.scalar_row(c.begin, c.key_head * in.group() + r);
      const float last = gates[c.n - 1].x;
      float2 own[2];
#pragma unroll
      for (int i = 0; i < 2; ++i)
        own[i] = lane + i * kWarpSize < c.n ? gates[lane + i * kWarpSize] : make_float2(last, 0.0f);
      wait(&barriers.gates_free[turn.stage], turn.parity ^ 1);
      GradientStep& step = shared.steps[turn.stage];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int token = lane + i * kWarpSize;
        step.gamma[token] = own[i].x;
        step.beta[token] = own[i].y;
        step.e_gamma[token] = __expf(own[i].x);
        step.e_rest[token] = token < c.n ? __expf(last - own[i].x) : 0.0f;
      }
      if (lane == 0) step.e_last = __expf(last), step.chunk = c;
      __syncwarp();
      if (lane == 0) arrive(&barriers.gates_filled[turn.stage]);
      turn.next();
    }
  });
  wait(&barriers.gates_free[turn.stage], turn.parity ^ 1);
  if (lane == 0) {
    shared.steps[turn.stage].chunk.n = 0;
    arrive(&barriers.gates_filled[turn.stage]);
  }
}

// The gradients of the gates: lane l for tokens l and l + 32.
template <class Entered>
__device__ __forceinline__ void finish_gates(const Inputs& in, const Gradients& d, const Entered& entered,
                                             const GradientMemory& shared, GradientBarriers& barriers) {
  const int lane = threadIdx.x % kWarpSize;
  Turn<kGateStages> turn;
  for_each_gradient(in, entered, [&](const GradientChunk& c) {
    for (int r = 0; r < in.group(); ++r) {
      const int head = c.key_head * in.group() + r;
      wait(&barriers.sums_filled[turn.stage], turn.parity);
      const GradientSums& sums = shared.sums[turn.stage];
      float d_gamma[2], d_beta[2], d_last = 0;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int i = lane + half * kWarpSize;
        d_gamma[half] = sums.rows[0][i] + sums.rows[1][i];
#pragma unroll
        for (int w = 0; w < 4; ++w) d_gamma[half] -= sums.columns[0][w][i] + sums.columns[1][w][i];
        if (i >= c.n) d_gamma[half] = 0;
        d_beta[half] = sums.beta[i];
      }
#pragma unroll
      for (int w = 0; w < 8; ++w) d_last += sums.last[w / 4][w % 4];
      __syncwarp();
      if (lane == 0) arrive(&barriers.sums_free[turn.stage]);
      turn.next();
      // log_decay_t is in gamma_i for all i >= t.
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (lane + half * kWarpSize == c.n - 1) d_gamma[half] += d_last;
      }
      sum_to_the_end(d_gamma);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int i = lane + half * kWarpSize;
        if (i >= c.n) continue;
        d.beta[int64_t(c.begin + i) * in.Hv + head] = d_beta[half];
        d.log_decay[int64_t(c.begin + i) * in.Hv + head] = d_gamma[half];
      }
    }
  });
}

// ---- What a computing warpgroup does --------------------------------------------------------------------------------

// A lane's two rows of 64 tokens, and the first of its two columns of 8.
__device__ __forceinline__ int token_row(int half) {
  return threadIdx.x % kWarpgroup / kWarpSize * 16 + threadIdx.x % kWarpSize / 4 + 8 * half;
}
__device__ __forceinline__ int pair_column(int block) { return 8 * block + threadIdx.x % 4 * 2; }

using HalfSquare = float[kChunk / 4];  // sums (tokens, 32)

// sums (tokens, 32) = a b^T, a a unit of values or keys, b one from the first of the 32 lines on
__device__ __forceinline__ void multiply_units(HalfSquare& sums, uint32_t a, uint32_t b) {
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k) {
    const uint32_t at = k / 4 * kTileBytes + k % 4 * kFactorStep<Major::kK>;
    multiply_add<kChunk / 2, Major::kK, Major::kK>(sums, factor<Major::kK>(a + at, 0), factor<Major::kK>(b + at, 0),
                                                   k > 0);
  }
}
// sums (tokens, 64) = a times 64 columns of a state
__device__ __forceinline__ void multiply_state(HalfValues& sums, uint32_t a, uint32_t state) {
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k) {
    multiply_add<kHalf, Major::kK, Major::kMn>(
        sums, factor<Major::kK>(a + k / 4 * kTileBytes + k % 4 * kFactorStep<Major::kK>, 0),
        factor<Major::kMn>(state + k / 4 * kTileBytes + k % 4 * kFactorStep<Major::kMn>, 0), k > 0);
  }
}

// Reads of tiles by their shared addresses.
__device__ __forceinline__ uint32_t load_pair(uint32_t address) {
  uint32_t pair;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(pair) : "r"(address) : "memory");
  return pair;
}
__device__ __forceinline__ Vec<bf16> load_vector(uint32_t address) {
  Vec<bf16> v;
  auto* parts = reinterpret_cast<uint32_t*>(&v);
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(parts[0]), "=r"(parts[1]), "=r"(parts[2]), "=r"(parts[3])
               : "r"(address)
               : "memory");
  return v;
}
// The same number, but nothing that is made of it is made ahead of a loop and kept in registers.
__device__ __forceinline__ uint32_t made_here(uint32_t x) {
  asm volatile("" : "+r"(x));
  return x;
}

// dots += sums (tokens, 64) times the same columns of `tile`, by rows; to += factor(row) sums
template <class Factor>
__device__ __forceinline__ void dot_and_add(float (&dots)[2], HalfValues& to, const HalfValues& sums, uint32_t tile,
                                            Factor factor) {
  const uint32_t line = chunk_address(made_here(tile), token_row(0), 0) + threadIdx.x % 4 * 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float f = factor(token_row(half));
#pragma unroll
    for (int b = 0; b < 8; ++b) {
      const float2 pair = unpack_bf16(load_pair((line ^ b << 4) + half * 8 * 128));
      const float x = sums[4 * b + 2 * half], y = sums[4 * b + 2 * half + 1];
      dots[half] += pair.x * x + pair.y * y;
      to[4 * b + 2 * half] += f * x;
      to[4 * b + 2 * half + 1] += f * y;
    }
  }
}

// 8 kBlocks columns of all tokens to lines of a tile, from its `chunk`th eighth on.
template <int kBlocks>
__device__ __forceinline__ void stage_columns(uint32_t tile, const float* sums, int chunk) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x % kWarpgroup / kWarpSize;
#pragma unroll
  for (int t = 0; t < kBlocks / 2; ++t)
    store_factor(chunk_address(tile, 16 * warp + lane % 16, chunk + 2 * t + lane / 16), rounded_pair(sums, t));
}

// What a computing warpgroup waits for and releases, in the order in which it comes. All take all units, also those
// that they do not need, so that nobody is a turn ahead of the barriers.
struct GradientStream {
  const GradientMemory& shared;
  GradientBarriers& barriers;
  Turn<kUnits> unit;
  Turn<kKeyStages> keys;
  Turn<kGateStages> gates;

  __device__ __forceinline__ const GradientStep& step() const { return shared.steps[gates.stage]; }
  __device__ __forceinline__ GradientSums& sums() const { return shared.sums[gates.stage]; }
  __device__ __forceinline__ uint32_t key_tiles() const { return shared.keys + keys.stage * 2 * kUnitBytes; }
  __device__ __forceinline__ uint32_t address(int stage) const { return shared.units + stage * kUnitBytes; }
  __device__ __forceinline__ int take_unit() {
    const int stage = unit.stage;
    wait(&barriers.unit_filled[stage], unit.parity);
    unit.next();
    return stage;
  }
  __device__ __forceinline__ static void release(uint64_t* barrier) {
    if (threadIdx.x % kWarpSize == 0) arrive(barrier);
  }
  __device__ __forceinline__ void release_unit(int stage) { release(&barriers.unit_free[stage]); }
  __device__ __forceinline__ void wait_for_gates() { wait(&barriers.gates_filled[gates.stage], gates.parity); }
  __device__ __forceinline__ void wait_for_keys() { wait(&barriers.keys_filled[keys.stage], keys.parity); }
  // By one thread of the warpgroup, when all of it is done with K and Q.
  __device__ __forceinline__ void release_keys() { arrive(&barriers.keys_free[keys.stage]); }
  __device__ __forceinline__ void wait_for_sums() { wait(&barriers.sums_free[gates.stage], gates.parity ^ 1); }
  // When the head's gates are read and its sums written.
  __device__ __forceinline__ void finish_head() {
    __syncwarp();
    release(&barriers.sums_filled[gates.stage]);
    release(&barriers.gates_free[gates.stage]);
    gates.next();
  }
};

// Columns [32 half, ..) of a head's squares y delta^T (kOfKeys) or dO delta^T, and what follows from them: the gradient
// of the product K K^T or Q K^T, and sums over rows and columns; see add_squares. The product, the same for all heads,
// costs less to make again than to keep.
template <bool kOfKeys, int kColumnHalf>
__device__ __forceinline__ void add_half_square(HalfSquare& d_product, float (&row_sums)[2], float (&columns)[8],
                                                float* d_beta, const GradientStep& step, int n, float s, uint32_t left,
                                                uint32_t delta, uint32_t keys_or_queries, uint32_t keys) {
  const int warp = threadIdx.x % kWarpgroup / kWarpSize;
  HalfSquare products, product;
  constexpr uint32_t kLines = kColumnHalf * (kTileBytes / 2);
  begin_products();
  multiply_units(products, made_here(left), made_here(delta) + kLines);
  multiply_units(product, made_here(keys_or_queries), made_here(keys) + kLines);
  commit_products();
  wait_for_products<0>();
  hold(products);
  hold(product);
  if (kColumnHalf == 1 && warp < 2) return;  // above the diagonal
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = token_row(i);
    const float gamma = step.gamma[row], beta = step.beta[row], scale = kOfKeys ? -beta : s;
    const int end = row < n ? (kOfKeys ? row : row + 1) : 0;
    float diagonal = 0;
#pragma unroll
    for (int b = 0; b < 4; ++b) {  // also the blocks above the diagonal: one stretch without branches
      const int column = 32 * kColumnHalf + pair_column(b);
      const float2 other = *reinterpret_cast<const float2*>(step.gamma + column);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int at = 4 * b + 2 * i + e, j = column + e;
        const float decay = __expf(j < end ? gamma - (e ? other.y : other.x) : -INFINITY);
        const float d_square = scale * products[at] * decay, inside = d_square * product[at];
        if (kOfKeys) diagonal = j == row ? products[at] : diagonal;
        d_product[at] += d_square;
        row_sums[i] += inside;
        columns[2 * b + e] += inside;
      }
    }
    if constexpr (kOfKeys) {  // y . delta / beta; nobody reads it where there is no token
      diagonal = quad_sum(diagonal);
      if (threadIdx.x % 4 == 0 && row / 32 == kColumnHalf) d_beta[row] = __fdividef(diagonal, beta);
    }
  }
}

// Everything that goes through y (kOfKeys), or through dO.
template <bool kOfKeys>
__device__ __forceinline__ void gradient_side(const GradientMaps& maps, const Gradients& d, bf16* d_v, const Inputs& in,
                                              GradientStream& stream) {
  constexpr int kSide = kOfKeys ? 0 : 1;
  const int warp = threadIdx.x % kWarpgroup / kWarpSize, lane = threadIdx.x % kWarpSize;
  for (;; stream.keys.next()) {
    stream.wait_for_gates();
    const GradientChunk c = stream.step().chunk;
    if (c.n == 0) break;
    stream.wait_for_keys();
    const uint32_t k = stream.key_tiles(), q = k + kUnitBytes, own = kOfKeys ? k : q;
    HalfValues d_own[2] = {};      // of K or Q, by halves of the columns
    HalfSquare d_product[2] = {};  // of K K^T or Q K^T, likewise
    for (int r = 0; r < in.group(); ++r) {
      stream.wait_for_gates();
      const GradientStep& step = stream.step();
      const int delta = stream.take_unit(), y = stream.take_unit(), d_out = stream.take_unit();
      const uint32_t left = stream.address(kOfKeys ? y : d_out);
      stream.wait_for_sums();
      GradientSums& to_sums = stream.sums();
      float row_sums[2] = {};
      auto half_square = [&]<int kColumnHalf>() {
        float columns[8] = {};
        add_half_square<kOfKeys, kColumnHalf>(d_product[kColumnHalf], row_sums, columns, to_sums.beta, step, c.n, in.s,
                                              left, stream.address(delta), own, k);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const float sum = column_sum(columns[i]);
          if (lane < 4) to_sums.columns[kSide][warp][32 * kColumnHalf + pair_column(i / 2) + i % 2] = sum;
        }
      };
      half_square.template operator()<0>();
      half_square.template operator()<1>();
      if constexpr (kOfKeys) {  // dV = B y
        const int first_row = threadIdx.x % kWarpgroup / 16, chunk = threadIdx.x % 16;
        const uint32_t from = chunk_address(stream.address(y) + chunk / 8 * kTileBytes, first_row, chunk % 8);
        bf16* const to = d_v + in.value_row(c.begin + first_row, c.key_head * in.group() + r) + chunk * 8;
#pragma unroll 2
        for (int i = 0; i < kChunk / 8; ++i) {
          if (first_row + 8 * i >= c.n) break;
          const auto values = load_vector(from + i * 8 * 128);
          const float beta = step.beta[first_row + 8 * i];
          Vec<bf16> scaled;
#pragma unroll
          for (int e = 0; e < 8; ++e) scaled.set(e, beta * values[e]);
          scaled.store(to + int64_t(i) * 8 * in.Hv * kDim);
        }
      }
      float dots[2] = {}, write_dots[2] = {}, inner = 0;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        int state = 0;
        HalfValues sums;
        if (!c.is_first) {
          state = stream.take_unit();
          begin_products();
          multiply_state(sums, left, stream.address(state));
          commit_products();
          wait_for_products<0>();
          hold(sums);
          if (kOfKeys || c.is_last) stream.release_unit(state);
          dot_and_add(dots, d_own[half], sums, own + half * kTileBytes, [&](int row) {
            return kOfKeys ? -step.e_gamma[row] * step.beta[row] : in.s * step.e_gamma[row];
          });
        }
        if (c.is_last) continue;
        const int d_state = stream.take_unit();
        if constexpr (kOfKeys) {
          begin_products();
          multiply_state(sums, stream.address(delta), stream.address(d_state));
          commit_products();
          wait_for_products<0>();
          hold(sums);
          stream.release_unit(d_state);
          dot_and_add(write_dots, d_own[half], sums, own + half * kTileBytes,
                      [&](int row) { return step.e_rest[row]; });
        } else {
          if (!c.is_first) {
            const uint32_t a = stream.address(state) + threadIdx.x % kWarpgroup * 16;
            const uint32_t b = stream.address(d_state) + threadIdx.x % kWarpgroup * 16;
#pragma unroll 4
            for (int i = 0; i < kUnitBytes / 16 / kWarpgroup; ++i) {
              const auto x = load_vector(a + i * kWarpgroup * 16), z = load_vector(b + i * kWarpgroup * 16);
#pragma unroll
              for (int e = 0; e < 8; ++e) inner += x[e] * z[e];
            }
            __syncwarp();
            stream.release_unit(state);
          }
          stream.release_unit(d_state);
        }
      }
      __syncwarp();
      stream.release_unit(delta);
      stream.release_unit(y);
      stream.release_unit(d_out);

      float d_last = step.e_last * inner;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = token_row(i);
        const float dot = step.e_gamma[row] * quad_sum(dots[i]);
        float own_row = quad_sum(row_sums[i]);
        if constexpr (kOfKeys) {
          const float write = step.e_rest[row] * quad_sum(write_dots[i]);
          own_row -= step.beta[row] * dot + write;
          if (lane % 4 == 0) d_last += write;
        } else {
          own_row += in.s * dot;
        }
        if (lane % 4 == 0) to_sums.rows[kSide][row] = own_row;
      }
      d_last = warp_sum(d_last);
      if (lane == 0) to_sums.last[kSide][warp] = d_last;
      stream.finish_head();
    }

    // What the squares' gradients of all value heads add: (d_kk + d_kk^T) K + d_qk^T Q, or d_qk K.
    const int lent = stream.take_unit();
    const uint32_t d_kk = stream.address(lent), d_qk = d_kk + kTileBytes;
    stage_columns<4>(kOfKeys ? d_kk : d_qk, d_product[0], 0);
    stage_columns<4>(kOfKeys ? d_kk : d_qk, d_product[1], 4);
    fence_shared_writes();
    sync_threads(1, 2 * kWarpgroup);
    begin_products();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int t = 0; t < kTokenBlocks; ++t) {
        const uint32_t line = t * kFactorStep<Major::kMn>, tile = half * kTileBytes + line;
        multiply_add<kHalf, Major::kK, Major::kMn>(
            d_own[half], factor<Major::kK>((kOfKeys ? d_kk : d_qk) + t * kFactorStep<Major::kK>, 0),
            factor<Major::kMn>(k + tile, 0), true);
        if constexpr (kOfKeys) {
          multiply_add<kHalf, Major::kMn, Major::kMn>(d_own[half], factor<Major::kMn>(d_kk + line, 0),
                                                      factor<Major::kMn>(k + tile, 0), true);
          multiply_add<kHalf, Major::kMn, Major::kMn>(d_own[half], factor<Major::kMn>(d_qk + line, 0),
                                                      factor<Major::kMn>(q + tile, 0), true);
        }
      }
    }
    commit_products();
    wait_for_products<0>();
    hold(d_own[0]);
    hold(d_own[1]);
    stream.release_unit(lent);
    sync_threads(1, 2 * kWarpgroup);  // K and Q are read: their gradients take their place
    stage_columns<8>(own, d_own[0], 0);
    stage_columns<8>(own + kTileBytes, d_own[1], 0);
    fence_shared_writes();
    sync_threads(2 + kSide, kWarpgroup);
    if (c.n == kChunk) {
      if (threadIdx.x % kWarpgroup == 0) {
#pragma unroll
        for (int half = 0; half < 2; ++half)
          store_box(kOfKeys ? maps.d_k : maps.d_q, own + half * kTileBytes, half * kHalf, c.key_head, c.begin);
        wait_for_added<0>();
      }
    } else {
      bf16* to = (kOfKeys ? d.k : d.q) + in.key_row(c.begin, c.key_head);
      for (int i = threadIdx.x % kWarpgroup; i < c.n * 16; i += kWarpgroup) {
        const int row = i / 16, chunk = i % 16;
        load_vector(chunk_address(own + chunk / 8 * kTileBytes, row, chunk % 8))
            .store(to + int64_t(row) * in.Hk * kDim + chunk * 8);
      }
      sync_threads(2 + kSide, kWarpgroup);
    }
    if (threadIdx.x % kWarpgroup == 0) stream.release_keys();
  }
}

inline constexpr int kGradientBlock = (1 + kGradientConsumers) * kWarpgroup;

template <class Entered>
__global__ void __launch_bounds__(kGradientBlock, 1)
    wgmma_gradient_kernel(const __grid_constant__ GradientMaps maps, Gradients d, bf16* d_v, Inputs in,
                          const float2* all_gates, Scanned scanned, Entered entered) {
  if constexpr (kOnHopper) {
    extern __shared__ unsigned char unaligned[];
    __shared__ GradientBarriers barriers;
    const GradientMemory shared(unaligned);
    if (threadIdx.x == 0) barriers.init();
    __syncthreads();
    const int warp = threadIdx.x / kWarpSize;
    if (threadIdx.x < kWarpgroup) {
      leave_registers<40>();
      if (threadIdx.x == 0) bring_gradient_tiles(in, maps, scanned, entered, shared, barriers);
      if (warp == 1) bring_gradient_gates(in, all_gates, entered, shared, barriers);
      if (warp == 2) finish_gates(in, d, entered, shared, barriers);
      return;
    }
    take_registers<232>();
    GradientStream stream{shared, barriers, {}, {}, {}};
    if (threadIdx.x < 2 * kWarpgroup) gradient_side<true>(maps, d, d_v, in, stream);
    else gradient_side<false>(maps, d, d_v, in, stream);
  }
}

}  // namespace braid::cuda::delta_rule
