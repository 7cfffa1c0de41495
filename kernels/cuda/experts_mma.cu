#include "kernels/cuda/experts_backends.cuh"
#include "kernels/cuda/row_access.cuh"

// Expert products on the tensor cores of any GPU since sm_80: c (M, N) = a (M, K) b (N, K)^T in tiles of 128 x 128, 64
// deep.
//
// A block of 8 warps owns a tile, each warp 64 x 32 of it in registers. Three stages of shared memory are filled by
// asynchronous copies of 16 bytes, which write zeros where a tile reaches past its operand. In shared memory an operand
// lies as lines of its contiguous dimension, 64 or 128 numbers, whose 16-byte chunks are exchanged by the line's last
// three bits, so that neither a copy nor a load of a fragment meets a bank twice.
namespace braid::cuda {
namespace {

constexpr int kTile = kExpertTileRows;  // rows and columns
constexpr int kDepth = 64;
constexpr int kStages = 3;
constexpr int kMmaThreads = 256;
constexpr int kOperandBytes = kTile * kDepth * 2;
constexpr int kMmaSharedBytes = kStages * 2 * kOperandBytes;
constexpr int kPairColumns = kTile / 2;  // of each half, where b's tile takes columns from two places

// What a block multiplies. The pointers are those of the tile's first row or column at k = 0.
struct TileOperands {
  const bf16 *a, *b;
  int64_t a_stride, b_stride;  // from line to line
  int64_t b_pair;              // paired tiles: from the first to the second half of the columns
  int m_extent, n_extent;      // rows and columns (of each half) that exist from here on; may be more than the tile's
  int k_extent;
};

__device__ __forceinline__ void copy_async(uint32_t to, const bf16* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(inside ? 16 : 0) : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

template <Major kMajor, bool kPaired>
__device__ __forceinline__ void copy_operand(uint32_t to, const bf16* from, int64_t stride, int64_t pair, int extent,
                                             int k_left) {
  constexpr int kChunks = (kMajor == Major::kK ? kDepth : kTile) / 8, kLines = kTile * kDepth / 8 / kChunks;
  const int chunk = threadIdx.x % kChunks;
#pragma unroll
  for (int first = 0; first < kLines; first += kMmaThreads / kChunks) {
    const int line = first + threadIdx.x / kChunks;
    const int mn = kMajor == Major::kMn ? chunk * 8 : kPaired ? line % kPairColumns : line;
    const int k = kMajor == Major::kMn ? line : chunk * 8;
    const bool inside = mn < extent && k < k_left;
    const bf16* source = from + (kPaired ? mn * stride + (line >= kPairColumns ? pair : 0) : line * stride) + chunk * 8;
    copy_async(to + (line * kChunks + (chunk ^ line % 8)) * 16, inside ? source : from, inside);
  }
}

// Addresses, one per lane, of the four 8 x 8 matrices that ldmatrix.x4 reads for rows m .. m + 15 of a, or columns
// n .. n + 15 of b, at depth k .. k + 15.
template <Major kMajor>
__device__ __forceinline__ uint32_t fragment_address(uint32_t operand, int line, int chunk) {
  constexpr int kChunks = (kMajor == Major::kK ? kDepth : kTile) / 8;
  return operand + (line * kChunks + (chunk ^ line % 8)) * 16;
}
template <Major kMajor>
__device__ __forceinline__ uint32_t a_address(uint32_t operand, int m, int k) {
  const int lane = threadIdx.x % kWarpSize;
  if constexpr (kMajor == Major::kK) return fragment_address<kMajor>(operand, m + lane % 16, k / 8 + lane / 16);
  else return fragment_address<kMajor>(operand, k + lane % 8 + lane / 16 * 8, m / 8 + lane / 8 % 2);
}
template <Major kMajor>
__device__ __forceinline__ uint32_t b_address(uint32_t operand, int n, int k) {
  const int lane = threadIdx.x % kWarpSize;
  if constexpr (kMajor == Major::kK)
    return fragment_address<kMajor>(operand, n + lane % 8 + lane / 16 * 8, k / 8 + lane / 8 % 2);
  else return fragment_address<kMajor>(operand, k + lane % 16, n / 8 + lane / 16);
}

template <Major kMajor>
__device__ __forceinline__ void load_fragment(uint32_t (&r)[4], uint32_t address) {
  if constexpr (kMajor == Major::kK) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  }
}

__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// A warp's part of the tile, as mma.sync leaves it: block (i, j) of 16 x 8 numbers; a lane holds two neighbours of row
// lane / 4 and two of row lane / 4 + 8.
struct Accumulators {
  float c[4][4][4] = {};

  // body(row, column, first, second) for every pair of neighbours that this lane holds, in the tile's coordinates.
  template <class Body>
  __device__ __forceinline__ void for_each_pair(Body&& body) const {
    const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
    const int row = warp % 2 * 64 + lane / 4, column = warp / 2 * 32 + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        body(row + i * 16, column + j * 8, c[i][j][0], c[i][j][1]);
        body(row + i * 16 + 8, column + j * 8, c[i][j][2], c[i][j][3]);
      }
    }
  }
};

// One block per tile of the product; `Product` says which and what happens to it. What adds up rows of an expert does
// so a block of rows at a time, so that they may come in several calls.
template <class Product>
__global__ void __launch_bounds__(kMmaThreads, 2) mma_kernel(const Product product) {
  extern __shared__ __align__(128) unsigned char shared[];
  TileOperands t;
  if (!product.locate(t)) return;
  const auto stages = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int num_steps = (t.k_extent + kDepth - 1) / kDepth;
  auto copy_step = [&](int step) {
    if (step < num_steps) {
      const uint32_t stage = stages + step % kStages * (2 * kOperandBytes);
      const int k = step * kDepth;
      const int64_t a_offset = Product::kMajorA == Major::kK ? k : k * t.a_stride;
      const int64_t b_offset = Product::kMajorB == Major::kK ? k : k * t.b_stride;
      copy_operand<Product::kMajorA, false>(stage, t.a + a_offset, t.a_stride, 0, t.m_extent, t.k_extent - k);
      copy_operand<Product::kMajorB, Product::kPairedB>(stage + kOperandBytes, t.b + b_offset, t.b_stride, t.b_pair,
                                                        t.n_extent, t.k_extent - k);
    }
    commit_copies();  // of nothing past the end, so that the count of pending groups stays right
  };
#pragma unroll
  for (int step = 0; step < kStages - 1; ++step) copy_step(step);

  Accumulators sum;
  const int warp = threadIdx.x / kWarpSize, warp_m = warp % 2 * 64, warp_n = warp / 2 * 32;
  for (int step = 0; step < num_steps; ++step) {
    wait_for_copies<kStages - 2>();
    __syncthreads();  // this step's copies of all threads have arrived, and the stage of the last step is free
    copy_step(step + kStages - 1);
    const uint32_t a_tile = stages + step % kStages * (2 * kOperandBytes), b_tile = a_tile + kOperandBytes;
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      uint32_t a[4][4], b[2][4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        load_fragment<Product::kMajorA>(a[i], a_address<Product::kMajorA>(a_tile, warp_m + i * 16, k));
#pragma unroll
      for (int j = 0; j < 2; ++j)
        load_fragment<Product::kMajorB>(b[j], b_address<Product::kMajorB>(b_tile, warp_n + j * 16, k));
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) multiply_add(sum.c[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
    if constexpr (Product::kRowsAlongK) {
      constexpr int kBlockSteps = kExpertBlockRows / kDepth;
      if (step % kBlockSteps == kBlockSteps - 1 || step + 1 == num_steps) {
        product.finish(sum, t, shared);
        sum = {};
      }
    }
  }
  if constexpr (!Product::kRowsAlongK) {
    wait_for_copies<0>();
    __syncthreads();  // the stages are free for the epilogue
    product.finish(sum, t, shared);
  }
}

template <class Product>
void launch_mma(Context& ctx, const Product& product, dim3 grid, const char* name) {
  check_cuda(cudaFuncSetAttribute(mma_kernel<Product>, cudaFuncAttributeMaxDynamicSharedMemorySize, kMmaSharedBytes),
             "cudaFuncSetAttribute");
  mma_kernel<Product><<<grid, kMmaThreads, kMmaSharedBytes, stream_of(ctx)>>>(product);
  check_launch(name);
}

// A tile of results in shared memory as bf16, with the rows padded so that neither writes of neighbours nor reads of 16
// bytes meet a bank twice.
constexpr int kStagedStride = kTile + 8;
__device__ __forceinline__ bf16* stage_tile(const Accumulators& sum, unsigned char* shared) {
  auto* staged = reinterpret_cast<bf16*>(shared);
  sum.for_each_pair([=](int row, int column, float first, float second) {
    *reinterpret_cast<__nv_bfloat162*>(staged + row * kStagedStride + column) = __floats2bfloat162_rn(first, second);
  });
  __syncthreads();
  return staged;
}

// out (R, N) = x (R, K) weight_e^T for a weight (El, N, K), or x weight_e for (El, K, N).
template <Major kWeightMajor>
struct RowProduct {
  static constexpr Major kMajorA = Major::kK, kMajorB = kWeightMajor;
  static constexpr bool kPairedB = false, kRowsAlongK = false;
  RowGrid grid;
  bf16* out;
  const bf16 *x, *weight;
  int N, K;

  __device__ bool locate(TileOperands& t) const {
    const RowTile tile = grid.row_tile();
    const int n = grid.column_tile() * kTile;
    const bf16* w = weight + int64_t(tile.expert) * N * K;
    t = {x + int64_t(tile.begin) * K,
         kMajorB == Major::kK ? w + int64_t(n) * K : w + n,
         K,
         kMajorB == Major::kK ? K : N,
         0,
         tile.rows,
         N - n,
         K};
    return tile.rows > 0;
  }
  __device__ void finish(const Accumulators& sum, const TileOperands& t, unsigned char* shared) const {
    const bf16* staged = stage_tile(sum, shared);
    const int column = threadIdx.x % 16 * 8;
    if (column >= t.n_extent) return;
    bf16* to = out + int64_t(grid.row_tile().begin) * N + grid.column_tile() * kTile + column;
#pragma unroll
    for (int row = threadIdx.x / 16; row < kTile; row += kMmaThreads / 16)
      if (row < t.m_extent) Vec<bf16>::load(staged + row * kStagedStride + column).store(to + int64_t(row) * N);
  }
};

// [a | b] = x gate_up_e^T and h = row_gate * silu(a) * b. A tile has 64 columns of a and the same ones of b.
struct UpProduct {
  static constexpr Major kMajorA = Major::kK, kMajorB = Major::kK;
  static constexpr bool kPairedB = true, kRowsAlongK = false;
  RowGrid grid;
  bf16 *gate_up_out, *h;
  const bf16 *x, *gate_up;
  const float* row_gate;
  int F, C;

  __device__ bool locate(TileOperands& t) const {
    const RowTile tile = grid.row_tile();
    const int f = grid.column_tile() * kPairColumns;
    t = {x + int64_t(tile.begin) * C,
         gate_up + (int64_t(tile.expert) * 2 * F + f) * C,
         C,
         C,
         int64_t(F) * C,
         tile.rows,
         F - f,
         C};
    return tile.rows > 0;
  }
  __device__ void finish(const Accumulators& sum, const TileOperands& t, unsigned char* shared) const {
    const bf16* staged = stage_tile(sum, shared);
    const int column = threadIdx.x % 8 * 8;
    if (column >= t.n_extent) return;
    const int f = grid.column_tile() * kPairColumns + column, begin = grid.row_tile().begin;
#pragma unroll
    for (int row = threadIdx.x / 8; row < kTile; row += kMmaThreads / 8) {
      if (row >= t.m_extent) continue;
      const auto a = Vec<bf16>::load(staged + row * kStagedStride + column);
      const auto b = Vec<bf16>::load(staged + row * kStagedStride + kPairColumns + column);
      const int64_t r = begin + row;
      const float gate = row_gate[r];
      Vec<bf16> product;
#pragma unroll
      for (int i = 0; i < 8; ++i) product.set(i, swiglu(a[i], b[i], gate));
      a.store(gate_up_out + r * 2 * F + f);
      b.store(gate_up_out + r * 2 * F + F + f);
      product.store(h + r * F + f);
    }
  }
};

// d_h = d_out down_e, which stays in fp32 and on the chip, and from it h once more, the gradient of [a | b], and a part
// of each row's d_row_gate per column tile.
struct DownGradient {
  static constexpr Major kMajorA = Major::kK, kMajorB = Major::kMn;
  static constexpr bool kPairedB = false, kRowsAlongK = false;
  static constexpr int kStride = kTile + 8;  // of the tile in shared memory, in floats
  static_assert(kTile * kStride * 4 <= kMmaSharedBytes);
  RowGrid grid;
  bf16 *h, *d_gate_up_out;
  float* gate_part;  // (R, column_tiles)
  const bf16 *d_out, *down, *gate_up_out;
  const float* row_gate;
  int F, C;

  __device__ bool locate(TileOperands& t) const {
    const RowTile tile = grid.row_tile();
    const int f = grid.column_tile() * kTile;
    t = {d_out + int64_t(tile.begin) * C, down + int64_t(tile.expert) * C * F + f, C, F, 0, tile.rows, F - f, C};
    return tile.rows > 0;
  }
  __device__ void finish(const Accumulators& sum, const TileOperands& t, unsigned char* shared) const {
    auto* staged = reinterpret_cast<float*>(shared);
    sum.for_each_pair([=](int row, int column, float first, float second) {
      *reinterpret_cast<float2*>(staged + row * kStride + column) = make_float2(first, second);
    });
    __syncthreads();
    const int column = threadIdx.x % 16 * 8, f = grid.column_tile() * kTile + column, begin = grid.row_tile().begin;
#pragma unroll 2
    for (int row = threadIdx.x / 16; row < kTile; row += kMmaThreads / 16) {
      const int64_t r = begin + row;
      float d_gate = 0;
      if (row < t.m_extent && column < t.n_extent) {
        const auto a = Vec<bf16>::load(gate_up_out + r * 2 * F + f);
        const auto b = Vec<bf16>::load(gate_up_out + r * 2 * F + F + f);
        const auto d_h = Floats<8>::load(staged + row * kStride + column);
        const float gate = row_gate[r];
        Vec<bf16> d_a, d_b, product;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const SwigluGradient d = swiglu_gradient(d_h[i], a[i], b[i], gate);
          d_a.set(i, d.d_a);
          d_b.set(i, d.d_b);
          product.set(i, d.h);
          d_gate += d.d_gate;
        }
        d_a.store(d_gate_up_out + r * 2 * F + f);
        d_b.store(d_gate_up_out + r * 2 * F + F + f);
        product.store(h + r * F + f);
      }
#pragma unroll
      for (int offset = 8; offset > 0; offset /= 2) d_gate += __shfl_xor_sync(kAllLanes, d_gate, offset);
      if (row < t.m_extent && threadIdx.x % 16 == 0) gate_part[r * grid.column_tiles + grid.column_tile()] = d_gate;
    }
  }
};

__device__ __forceinline__ float2 load_pair(const float* from) { return *reinterpret_cast<const float2*>(from); }
__device__ __forceinline__ float2 load_pair(const bf16* from) {
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(from));
}
__device__ __forceinline__ void store_pair(float* to, float2 pair) { *reinterpret_cast<float2*>(to) = pair; }
__device__ __forceinline__ void store_pair(bf16* to, float2 pair) {
  *reinterpret_cast<__nv_bfloat162*>(to) = __float22bfloat162_rn(pair);
}

// d_weight_e (M, N) += d_y^T x over the rows of expert e;  d_y (R, M), x (R, N). Grid (tiles, El).
template <class G>
struct WeightProduct {
  static constexpr Major kMajorA = Major::kMn, kMajorB = Major::kMn;
  static constexpr bool kPairedB = false, kRowsAlongK = true;
  const int32_t* row_begin;
  G* d_weight;
  const bf16 *d_y, *x;
  int M, N;

  dim3 grid(int64_t El) const {
    return dim3(static_cast<unsigned>(ceil_div(M, kTile) * ceil_div(N, kTile)), static_cast<unsigned>(El));
  }
  __device__ int first_column() const { return blockIdx.x % ((N + kTile - 1) / kTile) * kTile; }
  __device__ int first_row() const { return blockIdx.x / ((N + kTile - 1) / kTile) * kTile; }

  __device__ bool locate(TileOperands& t) const {
    const int begin = row_begin[blockIdx.y], end = row_begin[blockIdx.y + 1], m = first_row(), n = first_column();
    t = {d_y + int64_t(begin) * M + m, x + int64_t(begin) * N + n, M, N, 0, M - m, N - n, end - begin};
    return end > begin;
  }
  __device__ void finish(const Accumulators& sum, const TileOperands& t, unsigned char*) const {
    G* to = d_weight + (int64_t(blockIdx.y) * M + first_row()) * N + first_column();
    const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
    const int first_m = warp % 2 * 64 + lane / 4, first_n = warp / 2 * 32 + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float2 old[8];  // all on their way before the first is needed
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int m = first_m + i * 16 + j % 2 * 8, n = first_n + j / 2 * 8;
        if (m < t.m_extent && n < t.n_extent) old[j] = load_pair(to + int64_t(m) * N + n);
      }
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int m = first_m + i * 16 + j % 2 * 8, n = first_n + j / 2 * 8;
        const float* c = sum.c[i][j / 2] + j % 2 * 2;
        if (m < t.m_extent && n < t.n_extent)
          store_pair(to + int64_t(m) * N + n, make_float2(old[j].x + c[0], old[j].y + c[1]));
      }
    }
  }
};

void weight_product(Context& ctx, const ExpertGroups& groups, Tensor d_weight, const bf16* d_y, const bf16* x,
                    const char* name) {
  dispatch_activation("d_weight", d_weight, [&]<class G> {
    const WeightProduct<G> product = {groups.row_begin,
                                      pointer<G>(d_weight),
                                      d_y,
                                      x,
                                      static_cast<int>(d_weight.dim(1)),
                                      static_cast<int>(d_weight.dim(2))};
    launch_mma(ctx, product, product.grid(d_weight.dim(0)), name);
  });
}

}  // namespace

void mma_experts_forward(Context& ctx, const ExpertGroups& groups, Tensor out, Tensor gate_up_out, Tensor h,
                         const Tensor& x, const Tensor& row_gate, const ExpertWeights& weights) {
  const int64_t C = x.dim(1), F = h.dim(1);
  const UpProduct up = {{groups, static_cast<int>(ceil_div(F, kPairColumns))},
                        pointer<bf16>(gate_up_out),
                        pointer<bf16>(h),
                        pointer<bf16>(x),
                        pointer<bf16>(weights.gate_up),
                        pointer<float>(row_gate),
                        static_cast<int>(F),
                        static_cast<int>(C)};
  launch_mma(ctx, up, up.grid.size(), "experts up");
  if (!out.defined()) return;
  const RowProduct<Major::kK> down = {{groups, static_cast<int>(ceil_div(C, kTile))},
                                      pointer<bf16>(out),
                                      pointer<bf16>(h),
                                      pointer<bf16>(weights.down),
                                      static_cast<int>(C),
                                      static_cast<int>(F)};
  launch_mma(ctx, down, down.grid.size(), "experts down");
}

void mma_experts_backward_input(Context& ctx, const ExpertGroups& groups, Tensor d_x, Tensor d_row_gate,
                                ExpertHidden hidden, const Tensor& d_out, const Tensor& row_gate,
                                const Tensor& gate_up_out, const ExpertWeights& weights) {
  const int64_t R = d_out.dim(0), C = d_out.dim(1), F = hidden.h.dim(1), El = weights.down.dim(0);
  Scratch scratch(ctx);
  const auto f = static_cast<int>(F), c = static_cast<int>(C), parts = static_cast<int>(ceil_div(F, kTile));
  auto* gate_part = scratch.array<float>(R * parts);
  if (ctx.counts_only()) return;
  const DownGradient down = {{groups, parts},
                             pointer<bf16>(hidden.h),
                             pointer<bf16>(hidden.d_gate_up_out),
                             gate_part,
                             pointer<bf16>(d_out),
                             pointer<bf16>(weights.down),
                             pointer<bf16>(gate_up_out),
                             pointer<float>(row_gate),
                             f,
                             c};
  launch_mma(ctx, down, down.grid.size(), "experts gradient of h");
  sum_gate_parts(ctx, d_row_gate, gate_part, parts, groups, El);
  const RowProduct<Major::kMn> up = {{groups, static_cast<int>(ceil_div(C, kTile))},
                                     pointer<bf16>(d_x),
                                     pointer<bf16>(hidden.d_gate_up_out),
                                     pointer<bf16>(weights.gate_up),
                                     c,
                                     2 * f};
  launch_mma(ctx, up, up.grid.size(), "experts gradient of x");
}

void mma_experts_backward_weight(Context& ctx, const ExpertGroups& groups, ExpertWeights d_weights,
                                 const ExpertHidden& hidden, const Tensor& d_out, const Tensor& x) {
  weight_product(ctx, groups, d_weights.gate_up, pointer<bf16>(hidden.d_gate_up_out), pointer<bf16>(x),
                 "experts gradient of gate_up");
  weight_product(ctx, groups, d_weights.down, pointer<bf16>(d_out), pointer<bf16>(hidden.h),
                 "experts gradient of down");
}

}  // namespace braid::cuda
