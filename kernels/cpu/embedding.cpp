#include "kernels/embedding.h"

#include <algorithm>
#include <cassert>
#include <numeric>

#include "kernels/cpu/dispatch.h"

namespace braid::cpu {

void embedding_forward(Context&, Tensor y, const Tensor& ids, const Tensor& table) {
  const int64_t N = y.dim(0), C = y.dim(1);
  const int64_t* id = ids.data<int64_t>();
  dispatch_float("table", table, [&]<class T> {
    T* y_data = y.data<T>();
    const T* table_data = table.data<T>();
#pragma omp parallel for schedule(static) if (N > 1)
    for (int64_t n = 0; n < N; ++n) {
      assert(-1 <= id[n] && id[n] < table.dim(0));
      if (id[n] < 0) std::fill_n(y_data + n * C, C, T(0));
      else std::copy_n(table_data + id[n] * C, C, y_data + n * C);
    }
  });
}

void embedding_backward(Context& ctx, Tensor d_table, const Tensor& d_y, const Tensor& ids) {
  const int64_t N = d_y.dim(0), C = d_y.dim(1);
  const int64_t* id = ids.data<int64_t>();
  Scratch scratch(ctx);
  // Tokens by id, then by position. A run of equal ids is one row of the table and belongs to one thread.
  int64_t *order = scratch.array<int64_t>(N), *run_begin = scratch.array<int64_t>(N + 1);
  if (ctx.counts_only()) return;
  std::iota(order, order + N, 0);
  std::sort(order, order + N, [id](int64_t a, int64_t b) { return id[a] != id[b] ? id[a] < id[b] : a < b; });
  int64_t num_runs = 0;
  for (int64_t i = 0; i < N; ++i) {
    assert(-1 <= id[order[i]] && id[order[i]] < d_table.dim(0));
    if (id[order[i]] >= 0 && (i == 0 || id[order[i]] != id[order[i - 1]])) run_begin[num_runs++] = i;
  }
  run_begin[num_runs] = N;
  dispatch_float("d_table", d_table, [&]<class T> {
    T* d_table_data = d_table.data<T>();
    const T* d_y_data = d_y.data<T>();
#pragma omp parallel for schedule(dynamic, 16)
    for (int64_t run = 0; run < num_runs; ++run) {
      T* row = d_table_data + id[order[run_begin[run]]] * C;
      for (int64_t i = run_begin[run]; i < run_begin[run + 1]; ++i) {
        const T* d_y_row = d_y_data + order[i] * C;
#pragma omp simd
        for (int64_t c = 0; c < C; ++c) row[c] += d_y_row[c];
      }
    }
  });
}

}  // namespace braid::cpu
