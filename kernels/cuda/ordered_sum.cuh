#pragma once

#include "kernels/core/context.h"
#include "kernels/cuda/common.cuh"

// Sums over rows, for weight gradients: the same bits every time, on every device. Rows are cut into tiles of a size
// that depends on shapes only, every tile is summed on its own into scratch, and the tiles are added in a fixed order.
//
// A kernel that forms the terms on its way anyway writes one row of partial sums per tile, and add_partials does the
// rest:
//   Scratch scratch(ctx);
//   float* partial = scratch.array<float>(num_tiles * width);
//   backward_kernel<<<num_tiles, …>>>(…, partial, …);   // block i writes all of partial[i * width .. (i + 1) * width)
//   add_partials(ctx, pointer<float>(d_weight), partial, num_tiles, width);
//
// Where the terms can be read back from memory, add_column_sums does both stages:
//   add_column_sums(ctx, pointer<float>(d_bias), N, Hv,
//                   [=] __device__(int64_t row, int64_t column) { return d_y[row * Hv + column]; });
namespace braid::cuda {

namespace ordered_sum {

inline constexpr int kColumns = kWarpSize;  // of a block, one per lane
inline constexpr int kRowsApart = 32;       // rows that a block reads at a time, one per warp
inline constexpr int kTileRows = 512;       // summed by one block of the first stage

// Sum over rows [begin, end) of value(row, column): each warp adds every 32nd row, then the warps are added in order.
// The threads of warp 0 get it, one column each. Every thread of the block calls it, with its own column, which is
// threadIdx.x-th of the block's; value is not called for columns from `width` on.
template <class T, class Value>
__device__ T block_column_sum(int64_t begin, int64_t end, int64_t column, int64_t width, const Value& value) {
  __shared__ T of_warp[kRowsApart][kColumns];
  T sum = 0;
  if (column < width) {
#pragma unroll 8
    for (int64_t row = begin + threadIdx.y; row < end; row += kRowsApart) sum += value(row, column);
  }
  of_warp[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0) return 0;
#pragma unroll
  for (int warp = 1; warp < kRowsApart; ++warp) sum += of_warp[warp][threadIdx.x];
  return sum;
}

// First stage: block (i, j) sums columns [32 i, 32 i + 32) of rows [512 j, 512 j + 512).
template <class T, class Value>
__global__ void __launch_bounds__(kColumns* kRowsApart)
    tile_sums_kernel(T* partial, int64_t num_rows, int64_t width, Value value) {
  const int64_t column = int64_t(blockIdx.x) * kColumns + threadIdx.x;
  const int64_t begin = int64_t(blockIdx.y) * kTileRows;
  const int64_t end = begin + kTileRows < num_rows ? begin + kTileRows : num_rows;
  const T sum = block_column_sum<T>(begin, end, column, width, value);
  if (threadIdx.y == 0 && column < width) partial[blockIdx.y * width + column] = sum;
}

// Second stage: a block adds 32 columns of all partial sums to the total.
template <class T>
__global__ void __launch_bounds__(kColumns* kRowsApart)
    add_partials_kernel(T* total, const T* partial, int64_t num_partials, int64_t width) {
  const int64_t column = int64_t(blockIdx.x) * kColumns + threadIdx.x;
  const T sum = block_column_sum<T>(0, num_partials, column, width,
                                    [=](int64_t row, int64_t c) { return partial[row * width + c]; });
  if (threadIdx.y == 0 && column < width) total[column] += sum;
}

}  // namespace ordered_sum

// total[c] += sum over i of partial[i * width + c];  all in device memory, T float or double.
template <class T>
void add_partials(Context& ctx, T* total, const T* partial, int64_t num_partials, int64_t width) {
  using namespace ordered_sum;
  if (num_partials == 0 || width == 0 || ctx.counts_only()) return;
  add_partials_kernel<<<ceil_div(width, kColumns), dim3(kColumns, kRowsApart), 0, stream_of(ctx)>>>(
      total, partial, num_partials, width);
  check_launch("add_partials");
}

// total[c] += sum over rows of value(row, c), a __device__ function that gives a T.
template <class T, class Value>
void add_column_sums(Context& ctx, T* total, int64_t num_rows, int64_t width, Value value) {
  using namespace ordered_sum;
  if (num_rows == 0 || width == 0) return;
  const int64_t num_tiles = ceil_div(num_rows, kTileRows);
  Scratch scratch(ctx);
  T* partial = scratch.array<T>(num_tiles * width);
  if (ctx.counts_only()) return;
  const dim3 grid(ceil_div(width, kColumns), num_tiles), block(kColumns, kRowsApart);
  tile_sums_kernel<<<grid, block, 0, stream_of(ctx)>>>(partial, num_rows, width, value);
  check_launch("column sums");
  add_partials(ctx, total, partial, num_tiles, width);
}

}  // namespace braid::cuda
