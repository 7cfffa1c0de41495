#include "kernels/cuda/experts_backends.cuh"
#include "kernels/cuda/hopper.cuh"

// Expert products on Hopper: c (M, N) = a (M, K) b (N, K)^T in tiles of 128 x 256, 64 deep.
//
// One block of three warpgroups per multiprocessor goes through the tiles: one thread of the first copies what the next
// steps read into four stages of shared memory, up to 192 KiB and on into the tile after; the other two own 64 rows of
// the tile each and multiply. Tiles next to each other run at the same time and share rows and an expert's weight in
// the L2. What happens to a tile happens in registers: neighbouring lanes exchange what they hold, so that each has 8
// consecutive columns and reads and writes 16 bytes.
namespace braid::cuda {
namespace {

constexpr int kRows = kExpertTileRows, kColumns = 256, kDepth = kLine;
constexpr int kPairColumns = kColumns / 2;  // of each half, where b's tile takes columns from two places
constexpr int kStages = 4;
constexpr int kABytes = kRows * kDepth * 2, kBBytes = kColumns * kDepth * 2, kStageBytes = kABytes + kBBytes;
constexpr int kBlockBytes = kLine * kDepth * 2;  // 64 rows or columns
constexpr int kSumBytes = 64 * 128;              // 64 rows of a warpgroup's sums, a line wide, on their way to be added
constexpr int kSharedBytes = kStages * kStageBytes + 2 * 2 * kSumBytes + kSwizzleBytes;
static_assert(kSharedBytes <= 227 * 1024);
constexpr int kConsumers = 2, kConsumerWarps = kConsumers * 4, kThreads = (1 + kConsumers) * kWarpgroup;
static_assert(kRows == kConsumers * 64);

// A tile of a product: its first row and column, how many rows of it exist (may be more than kRows), and where along K
// it begins and how far it goes; what else decides where its numbers go.
struct Tile {
  int expert, row, rows, column, k_begin, k_extent;
};

// A consumer thread's part of a tile.
struct Accumulators {
  float c[128];

  // Row of the tile: half 0 or 1.
  __device__ __forceinline__ static int row(int half) {
    return threadIdx.x / kWarpgroup * 64 - 64 + threadIdx.x % kWarpgroup / kWarpSize * 16 +
           threadIdx.x % kWarpSize / 4 + half * 8;
  }
  // First of the 8 columns of this lane among the 32 from group * 32 on.
  __device__ __forceinline__ static int column(int group) { return group * 32 + threadIdx.x % 4 * 8; }

  // This lane's two neighbours in the `i`-th 8 of these columns of row(half).
  __device__ __forceinline__ const float* pair(int half, int group, int i) const {
    return c + (group * 4 + i) * 4 + half * 2;
  }

  // 8 consecutive numbers of row(half) from column(group) on.
  __device__ __forceinline__ Quad rounded(int half, int group) const {
    Quad quad;
#pragma unroll
    for (int i = 0; i < 4; ++i) quad.v[i] = pack_bf16(pair(half, group, i)[0], pair(half, group, i)[1]);
    quad.transpose();
    return quad;
  }
};

// Behind the last row of an expert lie rows of another one, or none: what a product adds up over them becomes zero. By
// all consumers; lines [k_left, kDepth) of the blocks of both operands.
__device__ __forceinline__ void clear_lines(unsigned char* stage, int k_left) {
  constexpr int kChunks = 128 / 16;
  for (int chunk = k_left * kChunks + threadIdx.x - kWarpgroup; chunk < kDepth * kChunks;
       chunk += kConsumers * kWarpgroup) {
#pragma unroll
    for (int block = 0; block < kStageBytes / kBlockBytes; ++block)
      *reinterpret_cast<uint4*>(stage + block * kBlockBytes + chunk * 16) = make_uint4(0, 0, 0, 0);
  }
  fence_shared_writes();
  sync_threads(1, kConsumers * kWarpgroup);
}

// Rows of an expert that are added up at a time, so that they may come in several calls.
constexpr int kBlockRows = static_cast<int>(kExpertBlockRows);
static_assert(kBlockRows % kDepth == 0);

// `Product` says which tiles there are, what of both operands a step reads, and what becomes of a tile.
template <class Product>
__global__ void __launch_bounds__(kThreads, 1)
    wgmma_kernel(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b,
                 const __grid_constant__ Product product) {
  if constexpr (kOnHopper) {
    extern __shared__ unsigned char unaligned[];
    __shared__ uint64_t filled[kStages], free[kStages];
    const uint32_t shift = (kSwizzleBytes - shared_address(unaligned) % kSwizzleBytes) % kSwizzleBytes;
    unsigned char* stages = unaligned + shift;
    if (threadIdx.x == 0) {
      prefetch_map(a);
      prefetch_map(b);
      for (int i = 0; i < kStages; ++i) {
        init_barrier(&filled[i], 1);
        init_barrier(&free[i], kConsumerWarps);
      }
      fence_barrier_init();
    }
    __syncthreads();

    int stage = 0;
    uint32_t parity = 0;  // of this turn through the stages
    auto next_stage = [&] {
      if (++stage == kStages) stage = 0, parity ^= 1;
    };
    if (threadIdx.x < kWarpgroup) {
      leave_registers<40>();
      if (threadIdx.x != 0) return;
      Tile t;
      for (int i = blockIdx.x; product.tile(t, i); i += gridDim.x) {
        for (int k = 0; k < t.k_extent; k += kDepth) {
          wait(&free[stage], parity ^ 1);
          arrive_expecting(&filled[stage], kStageBytes);
          const uint32_t to = shared_address(stages + stage * kStageBytes);
          product.copy(to, to + kABytes, a, b, &filled[stage], t, k);
          next_stage();
        }
      }
      return;
    }

    take_registers<232>();
    constexpr Major kMajorA = Product::kMajorA, kMajorB = Product::kMajorB;
    const int warpgroup = threadIdx.x / kWarpgroup - 1;
    auto release = [&](int done) {
      if (threadIdx.x % kWarpSize == 0) arrive(&free[done]);
    };
    Tile t;
    for (int i = blockIdx.x; product.tile(t, i); i += gridDim.x) {
      if (t.k_extent == 0 && !Product::kWritesEmpty) continue;  // nothing to add up
      Accumulators sum;
      if (Product::kWritesEmpty && t.k_extent == 0) {
#pragma unroll
        for (float& c : sum.c) c = 0;
      }
      typename Product::Early early = product.early(t);
      int k = 0;
      do {
        const int block_begin = k, block_end = Product::kRowsAlongK ? min(t.k_extent, k + kBlockRows) : t.k_extent;
        int previous = -1;
        for (; k < block_end; k += kDepth) {
          wait(&filled[stage], parity);
          unsigned char* const here = stages + stage * kStageBytes;
          if constexpr (Product::kRowsAlongK) {
            if (t.k_extent - k < kDepth) clear_lines(here, t.k_extent - k);
          }
          const uint32_t a_tile = shared_address(here) + warpgroup * kBlockBytes,
                         b_tile = shared_address(here) + kABytes;
          begin_products();
#pragma unroll
          for (int step = 0; step < kDepth / 16; ++step)
            multiply_add_256<kMajorA, kMajorB>(
                sum.c, factor<kMajorA>(a_tile + step * kFactorStep<kMajorA>, kBlockBytes),
                factor<kMajorB>(b_tile + step * kFactorStep<kMajorB>, kBlockBytes), k > block_begin || step > 0);
          commit_products();
          wait_for_products<1>();
          if (previous >= 0) release(previous);
          previous = stage;
          next_stage();
        }
        wait_for_products<0>();
        if (previous >= 0) release(previous);
        if constexpr (Product::kRowsAlongK) product.finish(sum, t, block_begin > 0, stages + kStages * kStageBytes);
        else product.finish(sum, t, early, stages + kStages * kStageBytes);
      } while (Product::kRowsAlongK && k < t.k_extent);
    }
    if constexpr (Product::kRowsAlongK) wait_for_added<0>();
  }
}

template <class Product>
void launch(Context& ctx, const CUtensorMap& a, const CUtensorMap& b, const Product& product, const char* name) {
  check_cuda(cudaFuncSetAttribute(wgmma_kernel<Product>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes),
             "cudaFuncSetAttribute");
  wgmma_kernel<Product><<<ctx.gpu().num_sms, kThreads, kSharedBytes, stream_of(ctx)>>>(a, b, product);
  check_launch(name);
}

// ---- Operands -------------------------------------------------------------------------------------------------------

// Rows (R, K) of activations, of which a tile takes 128 at a time.
CUtensorMap map_of_rows(const Tensor& rows) {
  return make_tensor_map<bf16, 2>({pointer<bf16>(rows), {rows.dim(1), rows.dim(0)}, {rows.dim(1)}, {kLine, kRows}});
}
// The same (R, M), added up along its rows; a box has 64 of them and 64 columns.
CUtensorMap map_along_rows(const Tensor& rows) {
  return make_tensor_map<bf16, 2>({pointer<bf16>(rows), {rows.dim(1), rows.dim(0)}, {rows.dim(1)}, {kLine, kDepth}});
}
// Weights (El, N, K) of which a box has 256 lines along K, or 64 x 64 for a factor whose lines
// are those of (El, K, N).
CUtensorMap map_of_weight(const Tensor& weight, Major major) {
  const int64_t lines = weight.dim(1), width = weight.dim(2);
  return make_tensor_map<bf16, 3>({pointer<bf16>(weight),
                                   {width, lines, weight.dim(0)},
                                   {width, lines * width},
                                   {kLine, major == Major::kK ? kColumns : kDepth, 1}});
}
// gate_up (El, 2F, C): 128 lines of the gates and the same ones of the ups.
CUtensorMap map_of_pairs(const Tensor& gate_up) {
  const int64_t F = gate_up.dim(1) / 2, C = gate_up.dim(2);
  return make_tensor_map<bf16, 4>(
      {pointer<bf16>(gate_up), {C, F, 2, gate_up.dim(0)}, {C, F * C, 2 * F * C}, {kLine, kPairColumns, 2, 1}});
}

// ---- Products whose rows are the rows of activations ----------------------------------------------------------------

// Which tiles there are, those of the same rows one after the other, and what a step of one reads: rows (R, K), and a
// weight of their expert (El, N, K), or (El, K, N).
template <Major kWeightMajor>
struct RowTiles {
  static constexpr Major kMajorA = Major::kK, kMajorB = kWeightMajor;
  static constexpr bool kRowsAlongK = false, kWritesEmpty = false;
  const RowTile* tiles;
  int max_tiles, column_tiles, tile_columns, K;

  __device__ bool tile(Tile& t, int i) const {
    const int row_tile = i / column_tiles;
    if (row_tile >= max_tiles) return false;
    const RowTile rows = tiles[row_tile];
    t = {rows.expert, rows.begin, rows.rows, i % column_tiles * tile_columns, 0, K};
    return rows.rows > 0;
  }
  __device__ void copy(uint32_t a_to, uint32_t b_to, const CUtensorMap& a, const CUtensorMap& b, uint64_t* barrier,
                       const Tile& t, int k) const {
    copy_box(a_to, a, barrier, k, t.row);
    if constexpr (kWeightMajor == Major::kK) {
      copy_box(b_to, b, barrier, k, t.column, t.expert);
    } else {
#pragma unroll
      for (int n = 0; n < kColumns; n += kLine)
        copy_box(b_to + n / kLine * kBlockBytes, b, barrier, t.column + n, k, t.expert);
    }
  }
};

template <Major kWeightMajor>
RowTiles<kWeightMajor> row_tiles(const ExpertGroups& groups, int64_t N, int tile_columns, int64_t K) {
  return {groups.tiles, static_cast<int>(groups.max_tiles), static_cast<int>(ceil_div(N, tile_columns)), tile_columns,
          static_cast<int>(K)};
}

// out (R, N) = x (R, K) weight_e^T for a weight (El, N, K), or x weight_e for (El, K, N).
template <Major kWeightMajor>
struct RowProduct : RowTiles<kWeightMajor> {
  bf16* out;
  int N;
  struct Early {};
  __device__ Early early(const Tile&) const { return {}; }

  __device__ void finish(const Accumulators& sum, const Tile& t, const Early&, unsigned char*) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = sum.row(half);
      bf16* to = out + int64_t(t.row + row) * N + t.column;
#pragma unroll
      for (int group = 0; group < kColumns / 32; ++group) {
        const Quad quad = sum.rounded(half, group);
        if (row < t.rows && t.column + sum.column(group) < N) quad.store(to + sum.column(group));
      }
    }
  }
};

// [a | b] = x gate_up_e^T and h = row_gate * silu(a) * b. A tile has 128 columns of a and the same ones of b.
struct UpProduct : RowTiles<Major::kK> {
  bf16 *gate_up_out, *h;
  const float* row_gate;
  int F;
  struct Early {};
  __device__ Early early(const Tile&) const { return {}; }

  __device__ void copy(uint32_t a_to, uint32_t b_to, const CUtensorMap& a, const CUtensorMap& b, uint64_t* barrier,
                       const Tile& t, int k) const {
    copy_box(a_to, a, barrier, k, t.row);
    copy_box(b_to, b, barrier, k, t.column, 0, t.expert);
  }
  __device__ void finish(const Accumulators& sum, const Tile& t, const Early&, unsigned char*) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = sum.row(half);
      const int64_t r = t.row + row;
      const float gate = row < t.rows ? row_gate[r] : 0;
#pragma unroll
      for (int group = 0; group < kPairColumns / 32; ++group) {
        const Quad a = sum.rounded(half, group), b = sum.rounded(half, group + kPairColumns / 32);
        const int f = t.column + sum.column(group);
        if (row >= t.rows || f >= F) continue;
        Quad product;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float2 a_i = unpack_bf16(a.v[i]), b_i = unpack_bf16(b.v[i]);
          product.v[i] = pack_bf16(swiglu(a_i.x, b_i.x, gate), swiglu(a_i.y, b_i.y, gate));
        }
        a.store(gate_up_out + r * 2 * F + f);
        b.store(gate_up_out + r * 2 * F + F + f);
        product.store(h + r * F + f);
      }
    }
  }
};

// d_h = d_out down_e, which stays in registers, and from it h once more, the gradient of [a | b], and a part of each
// row's d_row_gate per column tile.
struct DownGradient : RowTiles<Major::kMn> {
  bf16 *h, *d_gate_up_out;
  float* gate_part;  // (R, column_tiles)
  const bf16* gate_up_out;
  const float* row_gate;
  int F;

  // What of [a | b] the end of a tile needs first is on its way while products add up; the rest follows as it goes.
  static constexpr int kSteps = 2 * kColumns / 32, kAhead = 4;
  struct Early {
    Quad a[kAhead], b[kAhead];
  };
  __device__ void load(Quad& a, Quad& b, const Tile& t, int step) const {
    const int row = Accumulators::row(step / (kColumns / 32)),
              f = t.column + Accumulators::column(step % (kColumns / 32));
    if (row >= t.rows || f >= F) return;
    const bf16* from = gate_up_out + int64_t(t.row + row) * 2 * F + f;
    a = Quad::load(from);
    b = Quad::load(from + F);
  }
  __device__ Early early(const Tile& t) const {
    Early e = {};
#pragma unroll
    for (int step = 0; step < kAhead; ++step) load(e.a[step], e.b[step], t, step);
    return e;
  }
  __device__ void finish(const Accumulators& sum, const Tile& t, const Early& early, unsigned char*) const {
    Early next = early;
    float d_gate = 0;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int half = step / (kColumns / 32), group = step % (kColumns / 32);
      const int row = sum.row(half), f = t.column + sum.column(group);
      const int64_t r = t.row + row;
      const float gate = row < t.rows ? row_gate[r] : 0;
      Quad a = next.a[step % kAhead], b = next.b[step % kAhead];
      if (step + kAhead < kSteps) load(next.a[step % kAhead], next.b[step % kAhead], t, step + kAhead);
      a.transpose();
      b.transpose();
      Quad d_a, d_b, product;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* d_h = sum.pair(half, group, i);
        const float2 a_i = unpack_bf16(a.v[i]), b_i = unpack_bf16(b.v[i]);
        const SwigluGradient first = swiglu_gradient(d_h[0], a_i.x, b_i.x, gate),
                             second = swiglu_gradient(d_h[1], a_i.y, b_i.y, gate);
        d_a.v[i] = pack_bf16(first.d_a, second.d_a);
        d_b.v[i] = pack_bf16(first.d_b, second.d_b);
        product.v[i] = pack_bf16(first.h, second.h);
        d_gate += first.d_gate + second.d_gate;
      }
      d_a.transpose();
      d_b.transpose();
      product.transpose();
      if (row < t.rows && f < F) {
        d_a.store(d_gate_up_out + r * 2 * F + f);
        d_b.store(d_gate_up_out + r * 2 * F + F + f);
        product.store(h + r * F + f);
      }
      if (group == kColumns / 32 - 1) {
        d_gate += __shfl_xor_sync(kAllLanes, d_gate, 1);
        d_gate += __shfl_xor_sync(kAllLanes, d_gate, 2);
        if (row < t.rows && threadIdx.x % 4 == 0) gate_part[r * column_tiles + t.column / kColumns] = d_gate;
        d_gate = 0;
      }
    }
  }
};

// ---- Gradients of the weights ---------------------------------------------------------------------------------------

// d_weight_e (M, N) [+]= d_y^T x over the rows of expert e;  d_y (R, M), x (R, N). Sums go through shared memory, 64
// rows of 32 floats or 64 bf16 at a time, and are stored, or added where the gradient is, so that no thread waits for
// what it adds to. To a bf16 gradient a rounded product is added, and the sum rounded again.
template <Accumulate kAccumulate, class G>
struct WeightProduct {
  static constexpr int kSumColumns = 128 / sizeof(G);
  static constexpr Major kMajorA = Major::kMn, kMajorB = Major::kMn;
  static constexpr bool kRowsAlongK = true, kWritesEmpty = kAccumulate == Accumulate::kNo;
  CUtensorMap d_weight;
  const int32_t* row_begin;
  struct Early {};
  __device__ Early early(const Tile&) const { return {}; }
  int num_experts, M, N;

  __device__ bool tile(Tile& t, int i) const {
    const int row_tiles = (M + kRows - 1) / kRows, column_tiles = (N + kColumns - 1) / kColumns;
    const int expert = i / (row_tiles * column_tiles), rest = i % (row_tiles * column_tiles);
    if (expert >= num_experts) return false;
    const int begin = row_begin[expert], row = rest / column_tiles * kRows;
    t = {expert, row, M - row, rest % column_tiles * kColumns, begin, row_begin[expert + 1] - begin};
    return true;
  }
  __device__ void copy(uint32_t a_to, uint32_t b_to, const CUtensorMap& a, const CUtensorMap& b, uint64_t* barrier,
                       const Tile& t, int k) const {
#pragma unroll
    for (int m = 0; m < kRows; m += kLine)
      copy_box(a_to + m / kLine * kBlockBytes, a, barrier, t.row + m, t.k_begin + k);
#pragma unroll
    for (int n = 0; n < kColumns; n += kLine)
      copy_box(b_to + n / kLine * kBlockBytes, b, barrier, t.column + n, t.k_begin + k);
  }
  // Of a block of rows; those behind the first are added to what that one left.
  __device__ void finish(const Accumulators& sum, const Tile& t, bool adds, unsigned char* sums) const {
    const int warpgroup = threadIdx.x / kWarpgroup - 1, thread = threadIdx.x % kWarpgroup;
    if (adds && thread == 0) wait_for_results();
    const int row = sum.row(0) - warpgroup * 64, column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int first = 0; first < kColumns; first += kSumColumns) {
      unsigned char* const box = sums + (warpgroup * 2 + first / kSumColumns % 2) * kSumBytes;
      if (thread == 0) wait_for_added<1>();  // the other box may still be read
      sync_threads(2 + warpgroup, kWarpgroup);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int i = 0; i < kSumColumns / 8; ++i) {
          const float* c = sum.pair(half, first / 32, i);
          constexpr int kOfChunk = 16 / sizeof(G);
          const int chunk = (i * 8 + column) / kOfChunk ^ row % 8;
          unsigned char* const to = box + (row + half * 8) * 128 + chunk * 16 + column % kOfChunk * sizeof(G);
          if constexpr (sizeof(G) == 4) *reinterpret_cast<float2*>(to) = make_float2(c[0], c[1]);
          else *reinterpret_cast<uint32_t*>(to) = pack_bf16(c[0], c[1]);
        }
      }
      fence_shared_writes();
      sync_threads(2 + warpgroup, kWarpgroup);
      if (thread == 0) {
        const int x = t.column + first, y = t.row + warpgroup * 64;
        if (kAccumulate == Accumulate::kYes || adds) add_box(d_weight, shared_address(box), x, y, t.expert);
        else store_box(d_weight, shared_address(box), x, y, t.expert);
      }
    }
  }
};

void weight_product(Context& ctx, const ExpertGroups& groups, Tensor d_weight, const Tensor& d_y, const Tensor& x,
                    Accumulate accumulate, const char* name) {
  const int64_t El = d_weight.dim(0), M = d_weight.dim(1), N = d_weight.dim(2);
  auto run = [&]<Accumulate kAccumulate, class G> {
    using Product = WeightProduct<kAccumulate, G>;
    const CUtensorMap sums =
        make_tensor_map<G, 3>({pointer<G>(d_weight), {N, M, El}, {N, M * N}, {Product::kSumColumns, 64, 1}});
    const Product product = {sums, groups.row_begin, static_cast<int>(El), static_cast<int>(M), static_cast<int>(N)};
    launch(ctx, map_along_rows(d_y), map_along_rows(x), product, name);
  };
  dispatch_activation("d_weight", d_weight, [&]<class G> {
    if (accumulate == Accumulate::kYes) run.template operator()<Accumulate::kYes, G>();
    else run.template operator()<Accumulate::kNo, G>();
  });
}

}  // namespace

void wgmma_experts_forward(Context& ctx, const ExpertGroups& groups, Tensor out, Tensor gate_up_out, Tensor h,
                           const Tensor& x, const Tensor& row_gate, const ExpertWeights& weights) {
  const int64_t C = x.dim(1), F = h.dim(1);
  const UpProduct up = {row_tiles<Major::kK>(groups, F, kPairColumns, C), pointer<bf16>(gate_up_out), pointer<bf16>(h),
                        pointer<float>(row_gate), static_cast<int>(F)};
  launch(ctx, map_of_rows(x), map_of_pairs(weights.gate_up), up, "experts up");
  if (!out.defined()) return;
  const RowProduct<Major::kK> down = {row_tiles<Major::kK>(groups, C, kColumns, F), pointer<bf16>(out),
                                      static_cast<int>(C)};
  launch(ctx, map_of_rows(h), map_of_weight(weights.down, Major::kK), down, "experts down");
}

void wgmma_experts_backward_input(Context& ctx, const ExpertGroups& groups, Tensor d_x, Tensor d_row_gate,
                                  ExpertHidden hidden, const Tensor& d_out, const Tensor& row_gate,
                                  const Tensor& gate_up_out, const ExpertWeights& weights) {
  const int64_t R = d_out.dim(0), C = d_out.dim(1), F = hidden.h.dim(1), El = weights.down.dim(0);
  Scratch scratch(ctx);
  const auto h_tiles = row_tiles<Major::kMn>(groups, F, kColumns, C);
  auto* gate_part = scratch.array<float>(R * h_tiles.column_tiles);
  if (ctx.counts_only()) return;
  const DownGradient down = {h_tiles,
                             pointer<bf16>(hidden.h),
                             pointer<bf16>(hidden.d_gate_up_out),
                             gate_part,
                             pointer<bf16>(gate_up_out),
                             pointer<float>(row_gate),
                             static_cast<int>(F)};
  launch(ctx, map_of_rows(d_out), map_of_weight(weights.down, Major::kMn), down, "experts gradient of h");
  sum_gate_parts(ctx, d_row_gate, gate_part, h_tiles.column_tiles, groups, El);
  const RowProduct<Major::kMn> up = {row_tiles<Major::kMn>(groups, C, kColumns, 2 * F), pointer<bf16>(d_x),
                                     static_cast<int>(C)};
  launch(ctx, map_of_rows(hidden.d_gate_up_out), map_of_weight(weights.gate_up, Major::kMn), up,
         "experts gradient of x");
}

void wgmma_experts_backward_weight(Context& ctx, const ExpertGroups& groups, ExpertWeights d_weights,
                                   const ExpertHidden& hidden, const Tensor& d_out, const Tensor& x,
                                   Accumulate accumulate) {
  weight_product(ctx, groups, d_weights.gate_up, hidden.d_gate_up_out, x, accumulate, "experts gradient of gate_up");
  weight_product(ctx, groups, d_weights.down, d_out, hidden.h, accumulate, "experts gradient of down");
}

}  // namespace braid::cuda
