#pragma once

#include "kernels/cuda/gated_delta_rule_gradient.cuh"
#include "kernels/cuda/gated_delta_rule_wgmma.cuh"

// The gradients that need no order, on Hopper; the formulas are those of gradient_kernel.
//
// A block per multiprocessor takes one (chunk, key head) after another, and the value heads of the key head one by one.
// Its first warpgroup brings and finishes: one thread copies, one warp makes the gates' factors, one puts the gates'
// gradients together. The second warpgroup makes what goes through y (the gradients of K, V and beta), the third what
// goes through dO (of Q); each has all 64 tokens, 16 rows a warp, and keeps its gradient of the keys or queries and of
// the square product in registers over the value heads.
//
// Shared memory: K and Q twice, and nine units of 16 KiB through which pass, for one head after another, delta, y, dO,
// and by halves of the key dimension S0 and dS; so the next head's come while this one's are multiplied. After the last
// head a unit is lent to two squares. It reads 2.5 KB per token and value head, which takes longer than its 131 kFLOP.
namespace braid::cuda::delta_rule {

inline constexpr int kUnits = 9, kUnitBytes = 2 * kTileBytes;
static_assert(kUnitBytes == kStateBytes);
inline constexpr int kKeyStages = 2, kGateStages = 2;

struct GradientMaps {
  CUtensorMap q, k, d_o, d_q, d_k;  // as in ScanMaps
};

// Gates of one value head.
struct alignas(16) GradientStep {
  float gamma[kChunk], beta[kChunk], e_gamma[kChunk], e_rest[kChunk];
  float e_last;
};

// What the gates' gradients are made of, from the warpgroup of y (0) and that of dO (1): what belongs to a token as a
// row, the sums over the columns of the squares by 16 rows, and parts of the gradient of Gamma.
struct GradientSums {
  float rows[2][kChunk], columns[2][4][kChunk], beta[kChunk], last[8];
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
    for (int i = 0; i < kUnits; ++i) init_barrier(&unit_filled[i], 1), init_barrier(&unit_free[i], 8);
    for (int i = 0; i < kKeyStages; ++i) init_barrier(&keys_filled[i], 1), init_barrier(&keys_free[i], 2);
    for (int i = 0; i < kGateStages; ++i) {
      init_barrier(&gates_filled[i], 1), init_barrier(&gates_free[i], 8);
      init_barrier(&sums_filled[i], 8), init_barrier(&sums_free[i], 1);
    }
    fence_barrier_init();
  }
};

struct GradientChunk {
  int key_head, begin, n;
  bool is_first, is_last;  // of its document
};
template <class Visit>
__device__ __forceinline__ void for_each_gradient(const Inputs& in, Visit&& visit) {
  for (int job = blockIdx.x; job < in.num_chunks * in.Hk; job += gridDim.x) {
    const int chunk = job / in.Hk, begin = in.chunk_begin[chunk], end = in.chunk_begin[chunk + 1];
    visit(GradientChunk{job % in.Hk, begin, end - begin, in.document_begin[begin] == begin,
                        chunk + 1 == in.num_chunks || in.document_begin[end] == end});
  }
}

__device__ __forceinline__ void bring_gradient_tiles(const Inputs& in, const GradientMaps& maps, const Scanned& scanned,
                                                     const GradientMemory& shared, GradientBarriers& barriers) {
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
  for_each_gradient(in, [&](const GradientChunk& c) {
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
      auto bring_state = [&](const BorderStates& states, int64_t token, int block) {
        bring(kUnitBytes, [&](uint32_t to, uint64_t* barrier) {
#pragma unroll
          for (int half = 0; half < 2; ++half)
            copy_bytes(to + half * kTileBytes, half_state(states, token, head, half, in.Hv) + block * (kHalf * kHalf),
                       kTileBytes, barrier);
        });
      };
      for (int block = 0; block < 2; ++block) {
        if (!c.is_first) bring_state(scanned.states, c.begin, block);
        if (!c.is_last) bring_state(scanned.d_states, c.begin + c.n, block);
      }
    }
    bring(0, [](uint32_t, uint64_t*) {});  // the squares
  });
}

__device__ __forceinline__ void bring_gradient_gates(const Inputs& in, const float2* all_gates,
                                                     const GradientMemory& shared, GradientBarriers& barriers) {
  const int lane = threadIdx.x % kWarpSize;
  Turn<kGateStages> turn;
  for_each_gradient(in, [&](const GradientChunk& c) {
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
      if (lane == 0) step.e_last = __expf(last);
      __syncwarp();
      if (lane == 0) arrive(&barriers.gates_filled[turn.stage]);
      turn.next();
    }
  });
}

// The gradients of the gates: lane l for tokens l and l + 32.
__device__ __forceinline__ void finish_gates(const Inputs& in, const Gradients& d, const GradientMemory& shared,
                                             GradientBarriers& barriers) {
  const int lane = threadIdx.x % kWarpSize;
  Turn<kGateStages> turn;
  for_each_gradient(in, [&](const GradientChunk& c) {
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
      for (int w = 0; w < 8; ++w) d_last += sums.last[w];
      __syncwarp();
      if (lane == 0) arrive(&barriers.sums_free[turn.stage]);
      turn.next();
      // log_decay_t is in gamma_i for all i >= t.
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (lane + half * kWarpSize == c.n - 1) d_gamma[half] += d_last;
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int offset = 1; offset < kWarpSize; offset *= 2) {
          const float above = __shfl_down_sync(kAllLanes, d_gamma[half], offset);
          if (lane + offset < kWarpSize) d_gamma[half] += above;
        }
      }
      d_gamma[0] += __shfl_sync(kAllLanes, d_gamma[1], 0);
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

// sums (tokens, tokens) = a b^T, both units of values or keys
__device__ __forceinline__ void multiply_units(HalfValues& sums, uint32_t a, uint32_t b) {
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k) {
    const uint32_t at = k / 4 * kTileBytes + k % 4 * kFactorStep<Major::kK>;
    multiply_add<kChunk, Major::kK, Major::kK>(sums, factor<Major::kK>(a + at, 0), factor<Major::kK>(b + at, 0), k > 0);
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

// dots += sums (tokens, 64) times the same columns of `tile`, by rows; to += factor(row) sums
template <class Factor>
__device__ __forceinline__ void dot_and_add(float (&dots)[2], HalfValues& to, const HalfValues& sums,
                                            const unsigned char* tile, Factor factor) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = token_row(half);
    const float f = factor(row);
    const unsigned char* line = tile + row * 128 + threadIdx.x % 4 * 4;
#pragma unroll
    for (int b = 0; b < 8; ++b) {
      const float2 pair = unpack_bf16(*reinterpret_cast<const uint32_t*>(line + ((b ^ row & 7) << 4)));
      const float x = sums[4 * b + 2 * half], y = sums[4 * b + 2 * half + 1];
      dots[half] += pair.x * x + pair.y * y;
      to[4 * b + 2 * half] += f * x;
      to[4 * b + 2 * half + 1] += f * y;
    }
  }
}

// Blocks of columns right of the warp's diagonal block hold nothing of a lower triangle.
__device__ __forceinline__ bool is_above(int block) { return block / 2 > threadIdx.x % kWarpgroup / kWarpSize; }

__device__ __forceinline__ void stage_square(uint32_t to, const HalfValues& sums) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x % kWarpgroup / kWarpSize;
#pragma unroll
  for (int t = 0; t < kTokenBlocks; ++t)
    store_factor(chunk_address(to, 16 * warp + lane % 16, 2 * t + lane / 16), rounded_pair(sums, t));
}

// Everything that goes through y (kOfKeys), or through dO.
template <bool kOfKeys>
__device__ __forceinline__ void gradient_side(const GradientMaps& maps, const Gradients& d, bf16* d_v, const Inputs& in,
                                              const GradientMemory& shared, GradientBarriers& barriers) {
  constexpr int side = kOfKeys ? 0 : 1;
  const int warp = threadIdx.x % kWarpgroup / kWarpSize, lane = threadIdx.x % kWarpSize;
  Turn<kUnits> unit;
  Turn<kKeyStages> keys;
  Turn<kGateStages> gates;
  auto release = [&](uint64_t* barrier) {
    if (lane == 0) arrive(barrier);
  };
  for_each_gradient(in, [&](const GradientChunk& c) {
    wait(&barriers.keys_filled[keys.stage], keys.parity);
    const uint32_t k = shared.keys + keys.stage * 2 * kUnitBytes, q = k + kUnitBytes;
    const uint32_t own = kOfKeys ? k : q;
    const unsigned char* own_tiles = shared.begin + (own - shared.units);
    HalfValues product, d_product = {};  // K K^T or Q K^T and its gradient
    HalfValues d_own[2] = {};            // of K or Q, by halves of the columns
    begin_products();
    multiply_units(product, own, k);
    commit_products();
    wait_for_products<0>();
    hold(product);

    for (int r = 0; r < in.group(); ++r, gates.next()) {
      const int head = c.key_head * in.group() + r;
      // The head's units: delta, y, dO, then S0 and dS of one half and of the other, where they exist.
      auto address = [&](int stage) { return shared.units + stage * kUnitBytes; };
      auto release_unit = [&](int stage) { release(&barriers.unit_free[stage]); };
      auto take_unit = [&] {  // also of what the other side needs, so that neither is a turn ahead
        const int stage = unit.stage;
        wait(&barriers.unit_filled[stage], unit.parity);
        unit.next();
        return stage;
      };
      const int delta = take_unit(), y = take_unit(), d_out = take_unit();
      const uint32_t left = address(kOfKeys ? y : d_out);

      wait(&barriers.gates_filled[gates.stage], gates.parity);
      const GradientStep& step = shared.steps[gates.stage];
      HalfValues sums;
      begin_products();
      multiply_units(sums, left, address(delta));
      commit_products();
      wait_for_products<0>();
      hold(sums);

      // What goes through the squares; see add_squares.
      float row_sums[2] = {}, diagonal[2] = {}, columns[16] = {};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = token_row(half);
        const float gamma = step.gamma[row], beta = kOfKeys ? step.beta[row] : 1.0f;
        const float sign = kOfKeys ? -1.0f : in.s;
#pragma unroll
        for (int b = 0; b < 8; ++b) {
          if (is_above(b)) continue;
          const float2 other = *reinterpret_cast<const float2*>(step.gamma + pair_column(b));
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int e = 4 * b + 2 * half + i, j = pair_column(b) + i;
            const bool exists = row < c.n && (kOfKeys ? j < row : j <= row);
            const float decay = exists ? __expf(gamma - (i ? other.y : other.x)) : 0.0f;
            const float d_square = sign * sums[e] * decay, inside = d_square * product[e];
            if (j == row) diagonal[half] = sums[e];
            d_product[e] += beta * d_square;
            row_sums[half] += beta * inside;
            columns[2 * b + i] += beta * inside;
          }
        }
      }
#pragma unroll
      for (int i = 0; i < 16; ++i) columns[i] = column_sum(columns[i]);

      if constexpr (kOfKeys) {  // dV = B y
        const unsigned char* tiles = shared.begin + y * kUnitBytes;
#pragma unroll
        for (int i = 0; i < kChunk * kDim / 8 / kWarpgroup; ++i) {
          const int vector = i * kWarpgroup + threadIdx.x % kWarpgroup, row = vector / 16, chunk = vector % 16;
          if (row >= c.n) continue;
          auto values = Vec<bf16>::load(
              reinterpret_cast<const bf16*>(tiles + chunk / 8 * kTileBytes + row * 128 + (((chunk ^ row) & 7) << 4)));
          const float beta = step.beta[row];
#pragma unroll
          for (int e = 0; e < 8; ++e) values.set(e, beta * values[e]);
          values.store(d_v + in.value_row(c.begin + row, head) + chunk * 8);
        }
      }

      float dots[2] = {}, write_dots[2] = {}, inner = 0;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const unsigned char* tile = own_tiles + half * kTileBytes;
        int state = 0, d_state = 0;
        if (!c.is_first) {
          state = take_unit();
          begin_products();
          multiply_state(sums, left, address(state));
          commit_products();
          wait_for_products<0>();
          hold(sums);
          dot_and_add(dots, d_own[half], sums, tile, [&](int row) {
            return kOfKeys ? -step.e_gamma[row] * step.beta[row] : in.s * step.e_gamma[row];
          });
        }
        if (!c.is_last) {
          d_state = take_unit();
          if constexpr (kOfKeys) {
            begin_products();
            multiply_state(sums, address(delta), address(d_state));
            commit_products();
            wait_for_products<0>();
            hold(sums);
            dot_and_add(write_dots, d_own[half], sums, tile, [&](int row) { return step.e_rest[row]; });
          } else if (!c.is_first) {  // <dS, S0>
            const unsigned char* a = shared.begin + state * kUnitBytes + threadIdx.x % kWarpgroup * 16;
            const unsigned char* b = shared.begin + d_state * kUnitBytes + threadIdx.x % kWarpgroup * 16;
#pragma unroll
            for (int i = 0; i < kUnitBytes / 16 / kWarpgroup; ++i) {
              const auto x = Vec<bf16>::load(reinterpret_cast<const bf16*>(a + i * kWarpgroup * 16));
              const auto z = Vec<bf16>::load(reinterpret_cast<const bf16*>(b + i * kWarpgroup * 16));
#pragma unroll
              for (int e = 0; e < 8; ++e) inner += x[e] * z[e];
            }
          }
        }
        __syncwarp();
        if (!c.is_first) release_unit(state);
        if (!c.is_last) release_unit(d_state);
      }
      release_unit(delta);
      release_unit(y);
      release_unit(d_out);

      // Sums for the gates.
      wait(&barriers.sums_free[gates.stage], gates.parity ^ 1);
      GradientSums& to = shared.sums[gates.stage];
      float d_last = step.e_last * inner;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = token_row(half);
        const float dot = quad_sum(dots[half]), e = step.e_gamma[row];
        float own_row = quad_sum(row_sums[half]);
        const float on_diagonal = quad_sum(diagonal[half]);
        if constexpr (kOfKeys) {
          const float write = step.e_rest[row] * quad_sum(write_dots[half]), beta = step.beta[row];
          own_row -= beta * e * dot + write;
          if (lane % 4 == 0) {
            d_last += write;
            to.beta[row] = on_diagonal / beta;  // y . delta / beta; nobody reads it where there is no token
          }
        } else {
          own_row += in.s * e * dot;
        }
        if (lane % 4 == 0) to.rows[side][row] = own_row;
      }
#pragma unroll
      for (int i = 0; i < 16; ++i)
        if (lane < 4) to.columns[side][warp][pair_column(i / 2) + i % 2] = columns[i];
      d_last = warp_sum(d_last);
      if (lane == 0) to.last[side * 4 + warp] = d_last;
      __syncwarp();
      release(&barriers.sums_filled[gates.stage]);
      release(&barriers.gates_free[gates.stage]);
    }

    // The squares' gradients of all value heads: d_kk, d_qk.
    wait(&barriers.unit_filled[unit.stage], unit.parity);
    const uint32_t squares[2] = {shared.units + unit.stage * kUnitBytes,
                                 shared.units + unit.stage * kUnitBytes + kTileBytes};
    stage_square(squares[side], d_product);
    fence_shared_writes();
    sync_threads(1, 2 * kWarpgroup);
    LeftFactor square[kTokenBlocks];
#pragma unroll
    for (int t = 0; t < kTokenBlocks; ++t) square[t] = rounded_pair(d_product, t);
    begin_products();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int t = 0; t < kTokenBlocks; ++t) {
        const uint32_t step = half * kTileBytes + t * kFactorStep<Major::kMn>;
        multiply_add<kHalf, Major::kMn>(d_own[half], square[t], factor<Major::kMn>(k + step, 0), true);
        if constexpr (kOfKeys) {
          multiply_add<kHalf, Major::kMn, Major::kMn>(d_own[half],
                                                      factor<Major::kMn>(squares[0] + t * kSixteenLines, 0),
                                                      factor<Major::kMn>(k + step, 0), true);
          multiply_add<kHalf, Major::kMn, Major::kMn>(d_own[half],
                                                      factor<Major::kMn>(squares[1] + t * kSixteenLines, 0),
                                                      factor<Major::kMn>(q + step, 0), true);
        }
      }
    }
    commit_products();
    wait_for_products<0>();
    hold(d_own[0]);
    hold(d_own[1]);
    release(&barriers.unit_free[unit.stage]);
    unit.next();
    sync_threads(1, 2 * kWarpgroup);  // K and Q are read: their gradients take their place
    stage_square(own, d_own[0]);
    stage_square(own + kTileBytes, d_own[1]);
    fence_shared_writes();
    sync_threads(2 + side, kWarpgroup);
    if (c.n == kChunk) {
      if (threadIdx.x % kWarpgroup == 0) {
        for (int half = 0; half < 2; ++half)
          store_box(kOfKeys ? maps.d_k : maps.d_q, own + half * kTileBytes, half * kHalf, c.key_head, c.begin);
        wait_for_added<0>();
      }
    } else {
      bf16* to = (kOfKeys ? d.k : d.q) + in.key_row(c.begin, c.key_head);
      for (int i = threadIdx.x % kWarpgroup; i < c.n * 16; i += kWarpgroup) {
        const int row = i / 16, chunk = i % 16;
        *reinterpret_cast<uint4*>(to + int64_t(row) * in.Hk * kDim + chunk * 8) = *reinterpret_cast<const uint4*>(
            own_tiles + chunk / 8 * kTileBytes + row * 128 + (((chunk ^ row) & 7) << 4));
      }
      sync_threads(2 + side, kWarpgroup);
    }
    if (threadIdx.x % kWarpgroup == 0) arrive(&barriers.keys_free[keys.stage]);
    keys.next();
  });
}

__global__ void __launch_bounds__(3 * kWarpgroup, 1)
    wgmma_gradient_kernel(const __grid_constant__ GradientMaps maps, Gradients d, bf16* d_v, Inputs in,
                          const float2* all_gates, Scanned scanned) {
  if constexpr (kOnHopper) {
    extern __shared__ unsigned char unaligned[];
    __shared__ GradientBarriers barriers;
    const GradientMemory shared(unaligned);
    if (threadIdx.x == 0) barriers.init();
    __syncthreads();
    const int warp = threadIdx.x / kWarpSize;
    if (threadIdx.x < kWarpgroup) {
      leave_registers<40>();
      if (threadIdx.x == 0) bring_gradient_tiles(in, maps, scanned, shared, barriers);
      if (warp == 1) bring_gradient_gates(in, all_gates, shared, barriers);
      if (warp == 2) finish_gates(in, d, shared, barriers);
      return;
    }
    take_registers<232>();
    if (threadIdx.x < 2 * kWarpgroup) gradient_side<true>(maps, d, d_v, in, shared, barriers);
    else gradient_side<false>(maps, d, d_v, in, shared, barriers);
  }
}

}  // namespace braid::cuda::delta_rule
