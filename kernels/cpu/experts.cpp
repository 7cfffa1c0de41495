#include "kernels/experts.h"

#include <omp.h>

#include <algorithm>
#include <vector>

#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/swiglu_row.h"

namespace braid::cpu {
namespace {

// Rows of activations, or of a weight gradient, in one task. From here on a larger product is hardly faster, and an
// expert that received every row still gives work to every thread.
constexpr int64_t kTile = 128;

struct Tile {
  int64_t expert, begin, end;
};

// Cuts the rows of every expert into tiles; an expert without rows has none.
std::vector<Tile> row_tiles(const Tensor& rows_per_expert, int64_t R) {
  const int64_t* rows = rows_per_expert.data<int64_t>();
  std::vector<Tile> tiles;
  int64_t begin = 0;
  for (int64_t e = 0; e < rows_per_expert.numel(); begin += rows[e], ++e)
    for (int64_t row = 0; row < rows[e]; row += kTile)
      tiles.push_back({e, begin + row, begin + std::min(rows[e], row + kTile)});
  check<ShapeError>(begin == R, "rows_per_expert: sums to ", begin, ", but x has ", R, " rows");
  return tiles;
}

// Rows of a weight gradient (M, N): d_weight [+]= d_y^T x over all rows of one expert, a product per block.
template <class T>
struct WeightTile {
  T* d_weight;
  const T *d_y, *x;
  int64_t tile_rows, M, N, rows;
};

}  // namespace

void experts_forward(Context& ctx, Tensor out, Tensor gate_up_out, const Tensor& x, const Tensor& row_gate,
                     const Tensor& rows_per_expert, const ExpertWeights& weights) {
  const int64_t R = x.dim(0), C = x.dim(1), F = weights.down.dim(2);
  dispatch_float("x", x, [&]<class T> {
    T *out_data = out.defined() ? out.data<T>() : nullptr, *ab_data = gate_up_out.data<T>();
    const T *x_data = x.data<T>(), *row_gate_data = row_gate.data<T>();
    const T *gate_up = weights.gate_up.data<T>(), *down = weights.down.data<T>();
    Scratch scratch(ctx);
    T* h_of_threads = scratch.array<T>(omp_get_max_threads() * kTile * F);  // stays in each core's cache
    if (ctx.counts_only()) return;
    const std::vector<Tile> tiles = row_tiles(rows_per_expert, R);
#pragma omp parallel for schedule(dynamic)
    for (size_t i = 0; i < tiles.size(); ++i) {
      const auto [e, begin, end] = tiles[i];
      T *ab = ab_data + begin * 2 * F, *h = h_of_threads + omp_get_thread_num() * kTile * F;
      gemm({end - begin, 2 * F, C}, T(1), {x_data + begin * C, C}, {gate_up + e * 2 * F * C, C, true}, T(0), ab, 2 * F);
      if (!out.defined()) continue;
      for (int64_t r = 0; r < end - begin; ++r)
        swiglu_row(h + r * F, ab + r * 2 * F, ab + r * 2 * F + F, row_gate_data[begin + r], F);
      gemm({end - begin, C, F}, T(1), {h, F}, {down + e * C * F, F, true}, T(0), out_data + begin * C, C);
    }
  });
}

void experts_backward_input(Context& ctx, Tensor d_x, Tensor d_row_gate, ExpertHidden hidden, const Tensor& d_out,
                            const Tensor& row_gate, const Tensor& gate_up_out, const Tensor& rows_per_expert,
                            const ExpertWeights& weights) {
  if (ctx.counts_only()) return;
  const int64_t R = d_out.dim(0), C = d_out.dim(1), F = weights.down.dim(2);
  const std::vector<Tile> tiles = row_tiles(rows_per_expert, R);
  dispatch_float("d_out", d_out, [&]<class T> {
    T *d_x_data = d_x.data<T>(), *d_row_gate_data = d_row_gate.data<T>();
    T *h_data = hidden.h.data<T>(), *d_ab_data = hidden.d_gate_up_out.data<T>();
    const T *d_out_data = d_out.data<T>(), *ab_data = gate_up_out.data<T>(), *row_gate_data = row_gate.data<T>();
    const T *gate_up = weights.gate_up.data<T>(), *down = weights.down.data<T>();
#pragma omp parallel for schedule(dynamic)
    for (size_t i = 0; i < tiles.size(); ++i) {
      const auto [e, begin, end] = tiles[i];
      T *h = h_data + begin * F, *d_ab = d_ab_data + begin * 2 * F;  // h holds its own gradient first
      gemm({end - begin, F, C}, T(1), {d_out_data + begin * C, C}, {down + e * C * F, F}, T(0), h, F);
      for (int64_t r = 0; r < end - begin; ++r) {
        T *h_row = h + r * F, *d_a = d_ab + r * 2 * F;
        const T* a = ab_data + (begin + r) * 2 * F;
        d_row_gate_data[begin + r] =
            swiglu_row_backward<RecomputeH::kYes, T>(d_a, d_a + F, h_row, h_row, a, a + F, row_gate_data[begin + r], F);
      }
      gemm({end - begin, C, 2 * F}, T(1), {d_ab, 2 * F}, {gate_up + e * 2 * F * C, C}, T(0), d_x_data + begin * C, C);
    }
  });
}

void experts_backward_weight(Context& ctx, ExpertWeights d_weights, const ExpertHidden& hidden, const Tensor& d_out,
                             const Tensor& x, const Tensor& rows_per_expert, Accumulate accumulate) {
  if (ctx.counts_only()) return;
  const int64_t C = x.dim(1), El = rows_per_expert.dim(0), F = hidden.h.dim(1);
  dispatch_float("x", x, [&]<class T> {
    const T *d_out_data = d_out.data<T>(), *x_data = x.data<T>();
    const T *h_data = hidden.h.data<T>(), *d_ab_data = hidden.d_gate_up_out.data<T>();
    std::vector<WeightTile<T>> weight_tiles;
    const T beta = accumulate == Accumulate::kYes ? 1 : 0;
    auto add_product = [&](T* d_weight, const T* d_y, const T* x, int64_t M, int64_t N, int64_t rows) {
      for (int64_t m = 0; m < M; m += kTile)
        weight_tiles.push_back({d_weight + m * N, d_y + m, x, std::min(kTile, M - m), M, N, rows});
    };
    T *d_gate_up = d_weights.gate_up.data<T>(), *d_down = d_weights.down.data<T>();
    const int64_t* rows = rows_per_expert.data<int64_t>();
    for (int64_t e = 0, first = 0; e < El; first += rows[e], ++e) {
      if (rows[e] == 0 && accumulate == Accumulate::kYes) continue;
      add_product(d_gate_up + e * 2 * F * C, d_ab_data + first * 2 * F, x_data + first * C, 2 * F, C, rows[e]);
      add_product(d_down + e * C * F, d_out_data + first * C, h_data + first * F, C, F, rows[e]);
    }
#pragma omp parallel for schedule(dynamic)
    for (size_t i = 0; i < weight_tiles.size(); ++i) {
      const WeightTile<T>& t = weight_tiles[i];
      if (t.rows == 0) std::fill_n(t.d_weight, t.tile_rows * t.N, T(0));
      for (int64_t row = 0; row < t.rows; row += kExpertBlockRows)
        gemm({t.tile_rows, t.N, std::min(kExpertBlockRows, t.rows - row)}, T(1), {t.d_y + row * t.M, t.M, true},
             {t.x + row * t.N, t.N}, row > 0 ? T(1) : beta, t.d_weight, t.N);
    }
  });
}

}  // namespace braid::cpu
