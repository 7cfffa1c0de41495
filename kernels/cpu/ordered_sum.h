#pragma once

#include <omp.h>

#include <algorithm>

#include "kernels/core/context.h"

namespace braid::cpu {

// Sums over rows into a vector of `width`, the same bits for every thread count: rows are cut into tiles of fixed size,
// each tile is summed on its own, and the tiles are added to `total` in order.
//   add_rows(partial, begin, end): adds rows [begin, end) into partial[0 .. width), which starts at zero
template <class T, class AddRows>
void sum_rows_in_order(Context& ctx, T* total, int64_t width, int64_t num_rows, int64_t tile_rows, AddRows&& add_rows) {
  const int64_t num_tiles = (num_rows + tile_rows - 1) / tile_rows;
  Scratch scratch(ctx);
  T* partial = scratch.array<T>(num_tiles * width);
  if (ctx.counts_only()) return;
#pragma omp parallel for schedule(static) if (num_tiles > 1)
  for (int64_t tile = 0; tile < num_tiles; ++tile) {
    std::fill_n(partial + tile * width, width, T(0));
    add_rows(partial + tile * width, tile * tile_rows, std::min(num_rows, (tile + 1) * tile_rows));
  }
  for (int64_t tile = 0; tile < num_tiles; ++tile)
    for (int64_t c = 0; c < width; ++c) total[c] += partial[tile * width + c];
}

// A sum over [0, n) of fp32 terms: of blocks in fp32, which are added in fp64. The error of one long sum in fp32 would
// be that of as many chains of additions as the compiler makes, and it need not make more than one.
//   sum_block(begin, end): the sum over [begin, end)
template <class SumBlock>
double sum_in_blocks(int64_t n, SumBlock&& sum_block) {
  constexpr int64_t kBlock = 1024;
  double sum = 0;
  for (int64_t begin = 0; begin < n; begin += kBlock) sum += sum_block(begin, std::min(n, begin + kBlock));
  return sum;
}

}  // namespace braid::cpu
