#include <cmath>
#include <type_traits>

#include "kernels/cuda/attention_tiles.cuh"

// Attention with bf16 tensor-core products (mma.sync) on any GPU since sm_80. Panels of 64 tokens x kDh lie in shared
// memory as rows of 16-byte pieces; piece p of row r lies at place p ^ (r & 7), so that the 8 rows of an ldmatrix touch
// all banks.
namespace braid::cuda {
namespace {

constexpr int kTile = 64;  // tokens in every tile and block

// ---- fragments ----

struct FragmentA {  // 16 x 16, row-major
  uint32_t reg[4];
};
struct FragmentB {  // two of 16 (k) x 8
  uint32_t reg[4];
};
struct Accumulator {  // 16 x 8: rows g, g + 8 and columns 2 t, 2 t + 1 of lane 4 g + t
  float c[4] = {};
};

__device__ __forceinline__ void mma(Accumulator& d, const FragmentA& a, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d.c[0]), "+f"(d.c[1]), "+f"(d.c[2]), "+f"(d.c[3])
      : "r"(a.reg[0]), "r"(a.reg[1]), "r"(a.reg[2]), "r"(a.reg[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void ldmatrix(uint32_t (&reg)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(reg[0]), "=r"(reg[1]), "=r"(reg[2]), "=r"(reg[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void ldmatrix_transposed(uint32_t (&reg)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(reg[0]), "=r"(reg[1]), "=r"(reg[2]), "=r"(reg[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ uint32_t pack(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// ---- panels in shared memory ----

// 64 rows of kWidth bf16 from shared-memory address `base`.
template <int kWidth>
struct Panel {
  static constexpr int kPieces = kWidth / 8;
  static constexpr int kBytes = kTile * kWidth * 2;
  static_assert(kPieces >= 8, "the swizzle permutes 8 pieces");
  uint32_t base;

  __device__ __forceinline__ uint32_t piece(int row, int p) const {
    return base + row * (kWidth * 2) + ((p ^ (row & 7)) * 16);
  }
  // Rows [m, m + 16), columns [k, k + 16) as the left factor.
  __device__ __forceinline__ FragmentA a(int m, int k) const {
    const int lane = threadIdx.x % kWarpSize;
    FragmentA f;
    ldmatrix(f.reg, piece(m + lane % 16, k / 8 + lane / 16));
    return f;
  }
  // Rows [n, n + 16), columns [k, k + 16) as the right factor with k along the columns: products with 16 rows.
  __device__ __forceinline__ FragmentB b(int n, int k) const {
    const int lane = threadIdx.x % kWarpSize;
    FragmentB f;
    ldmatrix(f.reg, piece(n + lane % 8 + lane / 16 * 8, k / 8 + lane / 8 % 2));
    return f;
  }
  // Rows [k, k + 16), columns [n, n + 16) as the right factor with k along the rows: products with 16 columns.
  __device__ __forceinline__ FragmentB b_from_rows(int k, int n) const {
    const int lane = threadIdx.x % kWarpSize;
    FragmentB f;
    ldmatrix_transposed(f.reg, piece(k + lane % 16, n / 8 + lane / 16));
    return f;
  }
  __device__ __forceinline__ void store(int row, int column, uint32_t pair) const {  // even column
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(piece(row, column / 8) + column % 8 * 2), "r"(pair) : "memory");
  }
  __device__ __forceinline__ Vec<bf16> load(int row, int p) const {
    uint4 v;
    asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(piece(row, p))
                 : "memory");
    return *reinterpret_cast<Vec<bf16>*>(&v);
  }
};

// Copies in the background 64 rows of Dh elements, `stride` elements apart, from row `begin` on; rows from `end` on and
// columns from Dh on become 0.
template <int kThreads, int kWidth>
__device__ __forceinline__ void fetch(Panel<kWidth> to, const bf16* from, int64_t stride, int Dh, int begin, int end) {
  constexpr int kPieces = Panel<kWidth>::kPieces;
#pragma unroll
  for (int i = threadIdx.x; i < kTile * kPieces; i += kThreads) {
    const int row = i / kPieces, p = i % kPieces;
    const bool exists = begin + row < end && p * 8 < Dh;
    const bf16* source = exists ? from + (begin + row) * stride + p * 8 : from;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to.piece(row, p)), "l"(source),
                 "r"(exists ? 16 : 0)
                 : "memory");
  }
}
__device__ __forceinline__ void end_fetch_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kInFlight>
__device__ __forceinline__ void wait_for_fetch() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kInFlight) : "memory");
}

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// ---- forward ----

constexpr int kForwardThreads = 128;

struct ForwardPointers {
  bf16 *y, *o;
  float* lse;
  const bf16 *q, *k, *v, *gate;  // gate: of head 0, or null; heads are 2 Dh apart
};

// A block owns 64 queries of one head, a warp 16 of them, with their sums of P V in registers. Per block of 64 keys
// 4 * 64 * 64 * Dh FLOP; K is read while P V is formed, V while Q K^T is.
template <int kDh>
__global__ void __launch_bounds__(kForwardThreads, 2)
    forward_kernel(ForwardPointers ptr, AttentionProblem problem, float scale) {
  extern __shared__ uint4 shared[];
  using P = Panel<kDh>;
  const P q = {shared_address(shared)}, k = {q.base + P::kBytes}, v = {k.base + P::kBytes};
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int head = blockIdx.x, kv_head = head / (problem.Hq / problem.Hkv), Dh = problem.Dh;
  const int N = static_cast<int>(problem.N), M = static_cast<int>(problem.M);
  const int tile_begin = (gridDim.y - 1 - blockIdx.y) * kTile;  // the longest of a document first
  const int tile_end = min(tile_begin + kTile, N);
  const int64_t q_stride = int64_t(problem.Hq) * Dh, kv_stride = int64_t(problem.Hkv) * Dh;
  const bf16 *k_head = ptr.k + kv_head * Dh, *v_head = ptr.v + kv_head * Dh;
  const float scale_log2 = scale * kLog2E;

  KeyBlocks<kTile, kTile> blocks(problem.documents, tile_begin, tile_end);
  fetch<kForwardThreads>(q, ptr.q + head * Dh, q_stride, Dh, tile_begin, tile_end);
  fetch<kForwardThreads>(k, k_head, kv_stride, Dh, blocks.key, M);
  end_fetch_group();

  Accumulator sum_pv[kDh / 8];
  // Of rows g and g + 8: the highest score so far, scaled for exp2, and the sum over this lane's columns.
  float highest[2] = {-INFINITY, -INFINITY}, sum_exp[2] = {0, 0};
  const int first_query = tile_begin + warp * 16 + lane / 4;

  while (!blocks.done) {
    const KeyBlocks<kTile, kTile> block = blocks;
    blocks.next();
    wait_for_fetch<0>();
    __syncthreads();  // K is here, and everybody is done with V
    fetch<kForwardThreads>(v, v_head, kv_stride, Dh, block.key, M);
    end_fetch_group();

    Accumulator score[kTile / 8];
#pragma unroll
    for (int d = 0; d < kDh; d += 16) {
      const FragmentA a = q.a(warp * 16, d);
#pragma unroll
      for (int j = 0; j < kTile; j += 16) {
        const FragmentB b = k.b(j, d);
        mma(score[j / 8], a, b.reg[0], b.reg[1]);
        mma(score[j / 8 + 1], a, b.reg[2], b.reg[3]);
      }
    }
    if (!block.all_visible()) {
#pragma unroll
      for (int j = 0; j < kTile / 8; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (!block.visible(first_query + i / 2 * 8, block.key + j * 8 + lane % 4 * 2 + i % 2))
            score[j].c[i] = -INFINITY;
    }

    float offset[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float block_highest = -INFINITY;
#pragma unroll
      for (int j = 0; j < kTile / 8; ++j)
        block_highest = fmaxf(block_highest, fmaxf(score[j].c[2 * r], score[j].c[2 * r + 1]));
      block_highest = fmaxf(block_highest, __shfl_xor_sync(kAllLanes, block_highest, 1));
      block_highest = fmaxf(block_highest, __shfl_xor_sync(kAllLanes, block_highest, 2));
      const float last = highest[r];
      highest[r] = fmaxf(last, __fmul_rn(block_highest, scale_log2));  // rounded, so that an old highest rescales by 1
      offset[r] = highest[r] == -INFINITY ? 0 : highest[r];            // nothing seen yet
      const float rescale = exp2_fast(last - offset[r]);
      sum_exp[r] *= rescale;
#pragma unroll
      for (int d = 0; d < kDh / 8; ++d) {
        sum_pv[d].c[2 * r] *= rescale;
        sum_pv[d].c[2 * r + 1] *= rescale;
      }
    }
#pragma unroll
    for (int j = 0; j < kTile / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        score[j].c[i] = exp2_fast(score[j].c[i] * scale_log2 - offset[i / 2]);
        sum_exp[i / 2] += score[j].c[i];
      }

    wait_for_fetch<0>();
    __syncthreads();  // V is here, and everybody is done with K
    if (!blocks.done) fetch<kForwardThreads>(k, k_head, kv_stride, Dh, blocks.key, M);
    end_fetch_group();
#pragma unroll
    for (int j = 0; j < kTile; j += 16) {
      const Accumulator &left = score[j / 8], &right = score[j / 8 + 1];
      const FragmentA a = {{pack(left.c[0], left.c[1]), pack(left.c[2], left.c[3]), pack(right.c[0], right.c[1]),
                            pack(right.c[2], right.c[3])}};
#pragma unroll
      for (int d = 0; d < kDh; d += 16) {
        const FragmentB b = v.b_from_rows(j, d);
        mma(sum_pv[d / 8], a, b.reg[0], b.reg[1]);
        mma(sum_pv[d / 8 + 1], a, b.reg[2], b.reg[3]);
      }
    }
  }

  // The warp's part of o takes the place of its queries, to be stored 16 bytes at a time.
  __syncwarp();
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    sum_exp[r] += __shfl_xor_sync(kAllLanes, sum_exp[r], 1);
    sum_exp[r] += __shfl_xor_sync(kAllLanes, sum_exp[r], 2);
    const int row = warp * 16 + lane / 4 + 8 * r, n = tile_begin + row;
    if (n < tile_end && lane % 4 == 0)
      ptr.lse[int64_t(n) * problem.Hq + head] = (highest[r] + log2f(sum_exp[r])) / kLog2E;
    const float norm = 1 / sum_exp[r];
#pragma unroll
    for (int d = 0; d < kDh / 8; ++d)
      q.store(row, d * 8 + lane % 4 * 2, pack(sum_pv[d].c[2 * r] * norm, sum_pv[d].c[2 * r + 1] * norm));
  }
  __syncwarp();
  for (int i = lane; i < 16 * P::kPieces; i += kWarpSize) {
    const int row = warp * 16 + i / P::kPieces, p = i % P::kPieces, n = tile_begin + row;
    if (n >= tile_end || p * 8 >= Dh) continue;
    const int64_t at = int64_t(n) * problem.Hq + head;
    const Vec<bf16> o = q.load(row, p);
    Vec<bf16> y = o;
    if (ptr.gate) {
      const Vec<bf16> gate = Vec<bf16>::load(ptr.gate + at * 2 * Dh + p * 8);
#pragma unroll
      for (int e = 0; e < 8; ++e) y.set(e, o[e] * sigmoid(gate[e]));
    }
    o.store(ptr.o + at * Dh + p * 8);
    y.store(ptr.y + at * Dh + p * 8);
  }
}

// ---- backward ----

constexpr int kBackwardThreads = 256;
constexpr int kWarpRows = 32, kWarpColumns = 16;  // of the 64 x 64 scores; 2 x 4 warps

enum class Side { kQueries, kKeys };  // which of the two a block owns

struct BackwardPointers {
  bf16 *d_q, *d_k, *d_v;
  const bf16 *q, *k, *v, *d_o;
  const float *lse, *delta;
};

// A block owns 64 tokens of one side and walks over blocks of the other:
//   its rows R1, R2 = q, d_o  (kQueries)  or  k, v  (kKeys);   the columns C1, C2 = k, v  or  q, d_o
//   P = exp(R1 C1^T - lse),  dS = P * (R2 C2^T - delta) * scale     both (rows, columns), each warp 32 x 16 of them
//   kQueries: d_q += dS C1;   kKeys: d_k += dS C1, d_v += P C2      each warp 32 rows x a quarter of Dh, in registers
// so each side does its own sums in a fixed order. Per block 6 (8 for keys) * 64 * 64 * Dh FLOP. A key block serves all
// query heads of its group. The columns of the next block are read behind the products.
template <int kDh, Side kSide>
__global__ void __launch_bounds__(kBackwardThreads, 1)
    backward_kernel(BackwardPointers ptr, AttentionProblem problem, float scale) {
  constexpr bool kKeys = kSide == Side::kKeys;
  using P = Panel<kDh>;
  using Square = Panel<kTile>;
  using Blocks = std::conditional_t<kKeys, QueryBlocks<kTile, kTile>, KeyBlocks<kTile, kTile>>;
  extern __shared__ uint4 shared[];
  __shared__ float column_lse[2][kTile], column_delta[2][kTile];  // of queries, where they are columns
  const P r1 = {shared_address(shared)}, r2 = {r1.base + P::kBytes};
  const P columns = {r2.base + P::kBytes};  // C1 and C2, twice
  const Square prob = {columns.base + 4 * P::kBytes}, d_score = {prob.base + Square::kBytes};
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int row0 = warp / 4 * kWarpRows, column0 = warp % 4 * kWarpColumns, d0 = warp % 4 * (kDh / 4);
  const int Dh = problem.Dh, group = problem.Hq / problem.Hkv;
  const int N = static_cast<int>(problem.N), M = static_cast<int>(problem.M);
  const int own_head = blockIdx.x, kv_head = kKeys ? own_head : own_head / group;
  const int tile_begin = (kKeys ? blockIdx.y : gridDim.y - 1 - blockIdx.y) * kTile;  // the longest first
  const int tile_end = min(tile_begin + kTile, kKeys ? M : N);
  const int64_t q_stride = int64_t(problem.Hq) * Dh, kv_stride = int64_t(problem.Hkv) * Dh;
  const float scale_log2 = scale * kLog2E;

  Blocks next = [&] {
    if constexpr (kKeys) return Blocks(problem.documents, N, group, tile_begin, tile_end);
    else return Blocks(problem.documents, tile_begin, tile_end);
  }();
  auto fetch_columns = [&](int stage) {
    const P c1 = {columns.base + stage * 2 * P::kBytes}, c2 = {c1.base + P::kBytes};
    if constexpr (kKeys) {
      const int head = kv_head * group + next.head;
      fetch<kBackwardThreads>(c1, ptr.q + head * Dh, q_stride, Dh, next.query, N);
      fetch<kBackwardThreads>(c2, ptr.d_o + head * Dh, q_stride, Dh, next.query, N);
      if (threadIdx.x < kTile) {
        const int n = next.query + threadIdx.x;
        const int64_t at = int64_t(n) * problem.Hq + head;
        column_lse[stage][threadIdx.x] = n < N ? ptr.lse[at] * kLog2E : 0;
        column_delta[stage][threadIdx.x] = n < N ? ptr.delta[at] : 0;
      }
    } else {
      fetch<kBackwardThreads>(c1, ptr.k + kv_head * Dh, kv_stride, Dh, next.key, M);
      fetch<kBackwardThreads>(c2, ptr.v + kv_head * Dh, kv_stride, Dh, next.key, M);
    }
  };
  if constexpr (kKeys) {
    fetch<kBackwardThreads>(r1, ptr.k + kv_head * Dh, kv_stride, Dh, tile_begin, tile_end);
    fetch<kBackwardThreads>(r2, ptr.v + kv_head * Dh, kv_stride, Dh, tile_begin, tile_end);
  } else {
    fetch<kBackwardThreads>(r1, ptr.q + own_head * Dh, q_stride, Dh, tile_begin, tile_end);
    fetch<kBackwardThreads>(r2, ptr.d_o + own_head * Dh, q_stride, Dh, tile_begin, tile_end);
  }
  fetch_columns(0);
  end_fetch_group();

  // Of the 4 rows whose scores this lane holds, where queries are rows.
  float row_lse[2][2] = {}, row_delta[2][2] = {};
  if constexpr (!kKeys) {
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int n = tile_begin + row0 + m * 16 + r * 8 + lane / 4;
        if (n >= N) continue;
        row_lse[m][r] = ptr.lse[int64_t(n) * problem.Hq + own_head] * kLog2E;
        row_delta[m][r] = ptr.delta[int64_t(n) * problem.Hq + own_head];
      }
  }

  constexpr int kSums = kDh / 4 / 8;                              // 8-column pieces of the warp's quarter of Dh
  Accumulator d_first[2][kSums], d_second[2][kKeys ? kSums : 1];  // d_q or d_k, and d_v
  for (int stage = 0; !next.done; stage ^= 1) {
    const Blocks block = next;
    next.next();
    wait_for_fetch<0>();
    __syncthreads();  // this stage is here; everybody is done with the other one and with prob and d_score
    if (!next.done) fetch_columns(stage ^ 1);
    end_fetch_group();
    const P c1 = {columns.base + stage * 2 * P::kBytes}, c2 = {c1.base + P::kBytes};

    Accumulator score[2][2], d_prob[2][2];
#pragma unroll
    for (int d = 0; d < kDh; d += 16) {
      const FragmentB b1 = c1.b(column0, d), b2 = c2.b(column0, d);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const FragmentA a1 = r1.a(row0 + m * 16, d), a2 = r2.a(row0 + m * 16, d);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          mma(score[m][j], a1, b1.reg[2 * j], b1.reg[2 * j + 1]);
          mma(d_prob[m][j], a2, b2.reg[2 * j], b2.reg[2 * j + 1]);
        }
      }
    }

    const bool all_visible = block.all_visible();
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float p[4], ds[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int row = row0 + m * 16 + i / 2 * 8 + lane / 4, column = column0 + j * 8 + lane % 4 * 2 + i % 2;
          float lse, delta;
          bool visible = all_visible;
          if constexpr (kKeys) {
            lse = column_lse[stage][column];
            delta = column_delta[stage][column];
            if (!visible) visible = block.visible(block.query + column, tile_begin + row);
          } else {
            lse = row_lse[m][i / 2];
            delta = row_delta[m][i / 2];
            if (!visible) visible = block.visible(tile_begin + row, block.key + column);
          }
          p[i] = visible ? exp2_fast(score[m][j].c[i] * scale_log2 - lse) : 0;
          ds[i] = visible ? p[i] * (d_prob[m][j].c[i] - delta) * scale : 0;
        }
        const int row = row0 + m * 16 + lane / 4, column = column0 + j * 8 + lane % 4 * 2;
        d_score.store(row, column, pack(ds[0], ds[1]));
        d_score.store(row + 8, column, pack(ds[2], ds[3]));
        if constexpr (kKeys) {
          prob.store(row, column, pack(p[0], p[1]));
          prob.store(row + 8, column, pack(p[2], p[3]));
        }
      }
    __syncthreads();

#pragma unroll
    for (int j = 0; j < kTile; j += 16) {
      FragmentA ds[2], p[2];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        ds[m] = d_score.a(row0 + m * 16, j);
        if constexpr (kKeys) p[m] = prob.a(row0 + m * 16, j);
      }
#pragma unroll
      for (int s = 0; s < kSums; s += 2) {
        const FragmentB b1 = c1.b_from_rows(j, d0 + s * 8);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          mma(d_first[m][s], ds[m], b1.reg[0], b1.reg[1]);
          mma(d_first[m][s + 1], ds[m], b1.reg[2], b1.reg[3]);
        }
        if constexpr (kKeys) {
          const FragmentB b2 = c2.b_from_rows(j, d0 + s * 8);
#pragma unroll
          for (int m = 0; m < 2; ++m) {
            mma(d_second[m][s], p[m], b2.reg[0], b2.reg[1]);
            mma(d_second[m][s + 1], p[m], b2.reg[2], b2.reg[3]);
          }
        }
      }
    }
  }

  const int heads = kKeys ? problem.Hkv : problem.Hq;
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int n = tile_begin + row0 + m * 16 + r * 8 + lane / 4;
      if (n >= tile_end) continue;
#pragma unroll
      for (int s = 0; s < kSums; ++s) {
        const int d = d0 + s * 8 + lane % 4 * 2;
        if (d >= Dh) continue;
        const int64_t at = (int64_t(n) * heads + own_head) * Dh + d;
        *reinterpret_cast<uint32_t*>((kKeys ? ptr.d_k : ptr.d_q) + at) =
            pack(d_first[m][s].c[2 * r], d_first[m][s].c[2 * r + 1]);
        if constexpr (kKeys)
          *reinterpret_cast<uint32_t*>(ptr.d_v + at) = pack(d_second[m][s].c[2 * r], d_second[m][s].c[2 * r + 1]);
      }
    }
}

// ---- launchers ----

template <class Body>
void dispatch_head_size(int64_t Dh, Body&& body) {
  if (Dh <= 64) return body.template operator()<64>();
  if (Dh <= 128) return body.template operator()<128>();
  body.template operator()<256>();
}

int64_t backward_shared_bytes(int64_t Dh) {
  int64_t bytes = 0;
  dispatch_head_size(Dh, [&]<int kDh> { bytes = 6 * Panel<kDh>::kBytes + 2 * Panel<kTile>::kBytes; });
  return bytes;
}

float score_scale(const AttentionProblem& problem) { return 1 / std::sqrt(static_cast<float>(problem.Dh)); }

}  // namespace

bool mma_attention_supports(const Context& ctx, const AttentionTensors& in) {
  constexpr int64_t kStaticSharedBytes = 4 * kTile * sizeof(float), kReservedSharedBytes = 1024;
  const int64_t Dh = in.q.dim(2);
  return in.q.dtype() == DType::kBF16 && Dh % 16 == 0 && Dh <= 256 &&
         backward_shared_bytes(Dh) + kStaticSharedBytes + kReservedSharedBytes <= ctx.gpu().most_shared_bytes;
}

void mma_attention_forward(Context& ctx, AttentionOutputs& out, const AttentionTensors& in, const Segments& segments) {
  const AttentionProblem problem = attention_problem(in, segments);
  const ForwardPointers ptr = {pointer<bf16>(out.y),
                               pointer<bf16>(out.o),
                               pointer<float>(out.lse),
                               pointer<bf16>(in.q),
                               pointer<bf16>(in.k),
                               pointer<bf16>(in.v),
                               in.q_gate.defined() ? pointer<bf16>(in.q_gate) + problem.Dh : nullptr};
  dispatch_head_size(problem.Dh, [&]<int kDh> {
    const int64_t bytes = 3 * Panel<kDh>::kBytes;
    allow_shared_memory(forward_kernel<kDh>, bytes);
    forward_kernel<kDh><<<dim3(problem.Hq, ceil_div(problem.N, kTile)), kForwardThreads, bytes, stream_of(ctx)>>>(
        ptr, problem, score_scale(problem));
    check_launch("attention_forward");
  });
}

void mma_attention_backward(Context& ctx, AttentionGradients& d_in, const AttentionOutputGradient& d_out,
                            const AttentionTensors& in, const AttentionOutputs& out, const Segments& segments) {
  const AttentionProblem problem = attention_problem(in, segments);
  const BackwardPointers ptr = {pointer<bf16>(d_in.q),    pointer<bf16>(d_in.k),   pointer<bf16>(d_in.v),
                                pointer<bf16>(in.q),      pointer<bf16>(in.k),     pointer<bf16>(in.v),
                                pointer<bf16>(d_out.d_o), pointer<float>(out.lse), pointer<float>(d_out.delta)};
  const int64_t bytes = backward_shared_bytes(problem.Dh);
  dispatch_head_size(problem.Dh, [&]<int kDh> {
    const auto launch = [&](auto* kernel, int heads, int64_t tokens) {
      allow_shared_memory(kernel, bytes);
      kernel<<<dim3(heads, ceil_div(tokens, kTile)), kBackwardThreads, bytes, stream_of(ctx)>>>(ptr, problem,
                                                                                                score_scale(problem));
      check_launch("attention_backward");
    };
    launch(backward_kernel<kDh, Side::kKeys>, problem.Hkv, problem.M);
    launch(backward_kernel<kDh, Side::kQueries>, problem.Hq, problem.N);
  });
}

}  // namespace braid::cuda
