#include "kernels/experts.h"

#include <algorithm>

#include "kernels/core/copy.h"
#include "kernels/cuda/experts_backends.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/row_access.cuh"
#include "kernels/cuda/warp_scan.cuh"

// Products of rows grouped by expert. How many rows an expert has is known on the device only, so the first kernel cuts
// the rows of every expert into tiles there, and the grid of a product has a block for each tile that there could be;
// those without one return at once.
//
// Three ways: bf16 with 16-byte rows on the tensor cores, with SwiGLU and its gradient where the product that they
// follow ends, on Hopper by its own instructions (experts_wgmma.cu) and elsewhere by those of all GPUs since sm_80
// (experts_mma.cu); and everything else in plain fp32 arithmetic, with SwiGLU apart.
namespace braid::cuda {
namespace {

constexpr int64_t kMaxExperts = 4096;  // what the block that cuts tiles has shared memory for
constexpr int kTile = kExpertTileRows;

using Groups = ExpertGroups;

constexpr int kGroupThreads = 1024;

// One block. An expert without rows has no tile.
__global__ void __launch_bounds__(kGroupThreads)
    group_kernel(int32_t* row_begin_out, RowTile* tiles, const int64_t* rows_per_expert, int num_experts,
                 int max_tiles) {
  extern __shared__ int32_t begins[];
  int32_t *row_begin = begins, *tile_begin = begins + num_experts + 1;  // (El + 1) each
  for (int e = threadIdx.x; e < num_experts; e += kGroupThreads)
    row_begin[e] = static_cast<int32_t>(rows_per_expert[e]);
  __syncthreads();
  if (threadIdx.x < kWarpSize) {
    const int lane = threadIdx.x;
    int32_t all_rows = 0, all_tiles = 0;
    for (int first = 0; first < num_experts; first += kWarpSize) {
      const int e = first + lane;
      const int32_t rows = e < num_experts ? row_begin[e] : 0, count = (rows + kTile - 1) / kTile;
      const int32_t row_sum = inclusive_scan(rows), tile_sum = inclusive_scan(count);
      if (e < num_experts) {
        row_begin[e] = all_rows + row_sum - rows;
        tile_begin[e] = all_tiles + tile_sum - count;
      }
      all_rows += __shfl_sync(kAllLanes, row_sum, kWarpSize - 1);
      all_tiles += __shfl_sync(kAllLanes, tile_sum, kWarpSize - 1);
    }
    if (lane == 0) {
      row_begin[num_experts] = all_rows;
      tile_begin[num_experts] = all_tiles;
    }
  }
  __syncthreads();
  for (int e = threadIdx.x; e <= num_experts; e += kGroupThreads) row_begin_out[e] = row_begin[e];
  for (int i = threadIdx.x; i < max_tiles; i += kGroupThreads) {
    RowTile tile = {0, 0, 0};
    if (i < tile_begin[num_experts]) {
      int low = 0, high = num_experts;  // tile_begin[low] <= i < tile_begin[high]
      while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (tile_begin[middle] <= i) low = middle;
        else high = middle;
      }
      const int begin = row_begin[low] + (i - tile_begin[low]) * kTile;
      tile = {low, begin, min(kTile, row_begin[low + 1] - begin)};
    }
    tiles[i] = tile;
  }
}

Groups make_groups(Context& ctx, Scratch& scratch, const Tensor& rows_per_expert, int64_t R) {
  const int64_t El = rows_per_expert.dim(0), max_tiles = R / kTile + std::min(El, R);
  check<ShapeError>(El <= kMaxExperts, "rows_per_expert: ", El, " experts, but at most ", kMaxExperts, " on the GPU");
  auto* row_begin = scratch.array<int32_t>(El + 1);
  auto* tiles = reinterpret_cast<RowTile*>(scratch.array<int32_t>(max_tiles * 3));
  if (ctx.counts_only()) return {row_begin, tiles, max_tiles};
  group_kernel<<<1, kGroupThreads, 2 * (El + 1) * sizeof(int32_t), stream_of(ctx)>>>(
      row_begin, tiles, pointer<int64_t>(rows_per_expert), El, max_tiles);
  check_launch("experts groups");
  return {row_begin, tiles, max_tiles};
}

// One thread per row: its parts, in order.
__global__ void sum_gate_parts_kernel(float* d_row_gate, const float* gate_part, const int32_t* num_rows, int parts) {
  const int64_t r = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (r >= *num_rows) return;
  float sum = 0;
  for (int i = 0; i < parts; ++i) sum += gate_part[r * parts + i];
  d_row_gate[r] = sum;
}

// ---- Any dtype and size: tiles of 128 x 64, 16 deep, in fp32 --------------------------------------------------------

constexpr int kFmaThreads = 256, kFmaColumns = 64, kFmaDepth = 16;

// An operand of a tile: element (mn, k) at data[mn * mn_stride + k * k_stride], for mn < extent.
template <class T>
struct StridedOperand {
  const T* data;
  int64_t mn_stride, k_stride;
  int extent;
};

template <int kWidth, class T>
__device__ __forceinline__ void copy_operand(float (&to)[kFmaDepth][kWidth + 4], const StridedOperand<T>& from, int k,
                                             int k_extent) {
  for (int i = threadIdx.x; i < kWidth * kFmaDepth; i += kFmaThreads) {
    // Neighbouring threads read neighbours in memory.
    const int mn = from.k_stride == 1 ? i / kFmaDepth : i % kWidth,
              depth = from.k_stride == 1 ? i % kFmaDepth : i / kWidth;
    to[depth][mn] = mn < from.extent && k + depth < k_extent
                        ? static_cast<float>(from.data[mn * from.mn_stride + (k + depth) * from.k_stride])
                        : 0.0f;
  }
}

// A block of 16 x 16 threads owns a tile, each thread 8 x 4 of it. body(row, column, value) for all that exists.
template <class T, class Body>
__device__ __forceinline__ void fma_tile(const StridedOperand<T>& a, const StridedOperand<T>& b, int k_extent,
                                         Body&& body) {
  __shared__ float a_tile[kFmaDepth][kTile + 4], b_tile[kFmaDepth][kFmaColumns + 4];
  const int row = threadIdx.x / 16 * 8, column = threadIdx.x % 16 * 4;
  float sum[8][4] = {};
  for (int k = 0; k < k_extent; k += kFmaDepth) {
    copy_operand<kTile>(a_tile, a, k, k_extent);
    copy_operand<kFmaColumns>(b_tile, b, k, k_extent);
    __syncthreads();
#pragma unroll
    for (int depth = 0; depth < kFmaDepth; ++depth)
#pragma unroll
      for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] += a_tile[depth][row + i] * b_tile[depth][column + j];
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 8; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (row + i < a.extent && column + j < b.extent) body(row + i, column + j, sum[i][j]);
}

// out (R, N) = x (R, K) weight_e^T for a weight (El, N, K), or x weight_e for (El, K, N).
template <Major kWeightMajor, class T>
__global__ void __launch_bounds__(kFmaThreads)
    fma_rows_kernel(T* out, const T* x, const T* weight, RowGrid grid, int N, int K) {
  const RowTile tile = grid.row_tile();
  if (tile.rows == 0) return;
  const int n = grid.column_tile() * kFmaColumns;
  const T* w = weight + int64_t(tile.expert) * N * K;
  const StridedOperand<T> a = {x + int64_t(tile.begin) * K, K, 1, tile.rows};
  const StridedOperand<T> b = kWeightMajor == Major::kK ? StridedOperand<T>{w + int64_t(n) * K, K, 1, N - n}
                                                        : StridedOperand<T>{w + n, 1, N, N - n};
  T* to = out + int64_t(tile.begin) * N + n;
  fma_tile(a, b, K, [=](int row, int column, float value) { to[int64_t(row) * N + column] = static_cast<T>(value); });
}

// d_weight_e (M, N) += d_y^T x over the rows of expert e. Grid (tiles, El).
template <class T, class G>
__global__ void __launch_bounds__(kFmaThreads)
    fma_weight_kernel(G* d_weight, const T* d_y, const T* x, const int32_t* row_begin, int M, int N) {
  const int begin = row_begin[blockIdx.y], rows = row_begin[blockIdx.y + 1] - begin;
  if (rows == 0) return;
  const int column_tiles = (N + kFmaColumns - 1) / kFmaColumns;
  const int m = blockIdx.x / column_tiles * kTile, n = blockIdx.x % column_tiles * kFmaColumns;
  G* to = d_weight + (int64_t(blockIdx.y) * M + m) * N + n;
  for (int first = 0; first < rows; first += kExpertBlockRows) {
    const StridedOperand<T> a = {d_y + int64_t(begin + first) * M + m, 1, M, M - m},
                            b = {x + int64_t(begin + first) * N + n, 1, N, N - n};
    fma_tile(a, b, min(rows - first, static_cast<int>(kExpertBlockRows)), [=](int row, int column, float value) {
      G& sum = to[int64_t(row) * N + column];
      sum = static_cast<G>(static_cast<float>(sum) + value);
    });
  }
}

// One warp per row.
constexpr int kRowWarps = 8;

template <class T>
__global__ void __launch_bounds__(kRowWarps* kWarpSize)
    swiglu_rows_kernel(T* h, const T* gate_up_out, const float* row_gate, const int32_t* num_rows, int F) {
  const int64_t r = int64_t(blockIdx.x) * kRowWarps + threadIdx.x / kWarpSize;
  if (r >= *num_rows) return;
  const T *a = gate_up_out + r * 2 * F, *b = a + F;
  const float gate = row_gate[r];
  for (int f = threadIdx.x % kWarpSize; f < F; f += kWarpSize)
    h[r * F + f] = static_cast<T>(swiglu(static_cast<float>(a[f]), static_cast<float>(b[f]), gate));
}

// h holds d_h first.
template <class T>
__global__ void __launch_bounds__(kRowWarps* kWarpSize)
    swiglu_rows_backward_kernel(T* d_gate_up_out, T* h, float* d_row_gate, const T* gate_up_out, const float* row_gate,
                                const int32_t* num_rows, int F) {
  const int64_t r = int64_t(blockIdx.x) * kRowWarps + threadIdx.x / kWarpSize;
  if (r >= *num_rows) return;
  const T *a = gate_up_out + r * 2 * F, *b = a + F;
  const float gate = row_gate[r];
  float d_gate = 0;
  for (int f = threadIdx.x % kWarpSize; f < F; f += kWarpSize) {
    const SwigluGradient d =
        swiglu_gradient(static_cast<float>(h[r * F + f]), static_cast<float>(a[f]), static_cast<float>(b[f]), gate);
    d_gate_up_out[r * 2 * F + f] = static_cast<T>(d.d_a);
    d_gate_up_out[r * 2 * F + F + f] = static_cast<T>(d.d_b);
    h[r * F + f] = static_cast<T>(d.h);
    d_gate += d.d_gate;
  }
  d_gate = warp_sum(d_gate);
  if (threadIdx.x % kWarpSize == 0) d_row_gate[r] = d_gate;
}

template <Major kWeightMajor, class T>
void fma_rows(Context& ctx, T* out, const T* x, const T* weight, const Groups& groups, int64_t N, int64_t K) {
  const RowGrid grid = {groups, static_cast<int>(ceil_div(N, kFmaColumns))};
  fma_rows_kernel<kWeightMajor><<<grid.size(), kFmaThreads, 0, stream_of(ctx)>>>(out, x, weight, grid, N, K);
  check_launch("experts rows");
}

template <class T>
void fma_weight(Context& ctx, Tensor d_weight, const T* d_y, const T* x, const Groups& groups) {
  const int64_t El = d_weight.dim(0), M = d_weight.dim(1), N = d_weight.dim(2);
  const dim3 grid(ceil_div(M, kTile) * ceil_div(N, kFmaColumns), El);
  dispatch_activation("d_weight", d_weight, [&]<class G> {
    fma_weight_kernel<<<grid, kFmaThreads, 0, stream_of(ctx)>>>(pointer<G>(d_weight), d_y, x, groups.row_begin, M, N);
    check_launch("experts weight gradient");
  });
}

bool on_tensor_cores(DType dtype, int64_t C, int64_t F, std::initializer_list<const void*> addresses) {
  bool ok = dtype == DType::kBF16 && C % 8 == 0 && F % 8 == 0;
  for (const void* address : addresses) ok &= reinterpret_cast<uintptr_t>(address) % 16 == 0;
  return ok;
}

}  // namespace

void sum_gate_parts(Context& ctx, Tensor d_row_gate, const float* parts, int64_t num_parts, const ExpertGroups& groups,
                    int64_t El) {
  sum_gate_parts_kernel<<<ceil_div(d_row_gate.numel(), 256), 256, 0, stream_of(ctx)>>>(
      pointer<float>(d_row_gate), parts, groups.row_begin + El, num_parts);
  check_launch("experts gradient of row_gate");
}

void experts_forward(Context& ctx, Tensor out, Tensor gate_up_out, const Tensor& x, const Tensor& row_gate,
                     const Tensor& rows_per_expert, const ExpertWeights& weights) {
  const int64_t R = x.dim(0), C = x.dim(1), F = weights.down.dim(2);
  Scratch scratch(ctx);
  const Groups groups = make_groups(ctx, scratch, rows_per_expert, R);
  Tensor h = scratch.tensor({R, F}, x.dtype());
  if (ctx.counts_only()) return;
  if (on_tensor_cores(x.dtype(), C, F,
                      {out.raw(), gate_up_out.raw(), x.raw(), weights.gate_up.raw(), weights.down.raw()})) {
    if (has_hopper_kernels(ctx)) return wgmma_experts_forward(ctx, groups, out, gate_up_out, h, x, row_gate, weights);
    return mma_experts_forward(ctx, groups, out, gate_up_out, h, x, row_gate, weights);
  }
  dispatch_activation("x", x, [&]<class T> {
    fma_rows<Major::kK>(ctx, pointer<T>(gate_up_out), pointer<T>(x), pointer<T>(weights.gate_up), groups, 2 * F, C);
    swiglu_rows_kernel<<<ceil_div(R, kRowWarps), kRowWarps * kWarpSize, 0, stream_of(ctx)>>>(
        pointer<T>(h), static_cast<const T*>(gate_up_out.raw()), pointer<float>(row_gate),
        groups.row_begin + rows_per_expert.dim(0), F);
    check_launch("experts swiglu");
    if (!out.defined()) return;
    fma_rows<Major::kK>(ctx, pointer<T>(out), static_cast<const T*>(h.raw()), pointer<T>(weights.down), groups, C, F);
  });
}

void experts_backward_input(Context& ctx, Tensor d_x, Tensor d_row_gate, ExpertHidden hidden, const Tensor& d_out,
                            const Tensor& row_gate, const Tensor& gate_up_out, const Tensor& rows_per_expert,
                            const ExpertWeights& weights) {
  const int64_t R = d_out.dim(0), C = d_out.dim(1), El = weights.down.dim(0), F = weights.down.dim(2);
  Scratch scratch(ctx);
  const Groups groups = make_groups(ctx, scratch, rows_per_expert, R);
  if (on_tensor_cores(d_out.dtype(), C, F,
                      {d_x.raw(), hidden.h.raw(), hidden.d_gate_up_out.raw(), d_out.raw(), gate_up_out.raw(),
                       weights.gate_up.raw(), weights.down.raw()})) {
    const auto backward = has_hopper_kernels(ctx) ? wgmma_experts_backward_input : mma_experts_backward_input;
    return backward(ctx, groups, d_x, d_row_gate, hidden, d_out, row_gate, gate_up_out, weights);
  }
  if (ctx.counts_only()) return;
  dispatch_activation("d_out", d_out, [&]<class T> {
    auto *h = pointer<T>(hidden.h), *d_ab = pointer<T>(hidden.d_gate_up_out);
    fma_rows<Major::kMn>(ctx, h, pointer<T>(d_out), pointer<T>(weights.down), groups, F, C);
    swiglu_rows_backward_kernel<<<ceil_div(R, kRowWarps), kRowWarps * kWarpSize, 0, stream_of(ctx)>>>(
        d_ab, h, pointer<float>(d_row_gate), pointer<T>(gate_up_out), pointer<float>(row_gate), groups.row_begin + El,
        F);
    check_launch("experts swiglu gradient");
    fma_rows<Major::kMn, T>(ctx, pointer<T>(d_x), d_ab, pointer<T>(weights.gate_up), groups, C, 2 * F);
  });
}

void experts_backward_weight(Context& ctx, ExpertWeights d_weights, const ExpertHidden& hidden, const Tensor& d_out,
                             const Tensor& x, const Tensor& rows_per_expert, Accumulate accumulate) {
  const int64_t R = x.dim(0), C = x.dim(1), El = rows_per_expert.dim(0), F = hidden.h.dim(1);
  const bool tensor_cores = on_tensor_cores(x.dtype(), C, F,
                                            {d_weights.gate_up.raw(), d_weights.down.raw(), hidden.h.raw(),
                                             hidden.d_gate_up_out.raw(), d_out.raw(), x.raw()});
  const bool on_hopper = tensor_cores && has_hopper_kernels(ctx);
  if (!on_hopper && accumulate == Accumulate::kNo) {
    fill_zero(ctx, d_weights.gate_up);
    fill_zero(ctx, d_weights.down);
  }
  Scratch scratch(ctx);
  const Groups groups = make_groups(ctx, scratch, rows_per_expert, R);
  if (ctx.counts_only()) return;
  if (on_hopper) return wgmma_experts_backward_weight(ctx, groups, d_weights, hidden, d_out, x, accumulate);
  if (tensor_cores) return mma_experts_backward_weight(ctx, groups, d_weights, hidden, d_out, x);
  dispatch_activation("x", x, [&]<class T> {
    fma_weight<T>(ctx, d_weights.gate_up, pointer<T>(hidden.d_gate_up_out), pointer<T>(x), groups);
    fma_weight<T>(ctx, d_weights.down, pointer<T>(d_out), pointer<T>(hidden.h), groups);
  });
}

Implementation experts_implementation(Context& ctx, const ExpertWeights& weights) {
  const int64_t C = weights.down.dim(1), F = weights.down.dim(2);
  const DType dtype = weights.down.dtype();
  if (on_tensor_cores(dtype, C, F, {})) {
    if (has_hopper_kernels(ctx)) return {"grouped products, Hopper's warpgroups (wgmma)", ""};
    const bool is_hopper = ctx.gpu().compute_capability == 90;
    return {"grouped products, tensor cores (mma.sync)",
            is_hopper ? "this build has no kernels for sm_90a: set CMAKE_CUDA_ARCHITECTURES" : ""};
  }
  return {"grouped products, fp32 arithmetic", concat("the tensor-core kernels take bf16 and widths that are multiples "
                                                      "of 8, not ",
                                                      C, " and ", F, " in ", name_of(dtype))};
}

}  // namespace braid::cuda
