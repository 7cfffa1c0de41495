#include "kernels/expert_rows.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/dispatch.h"

namespace braid::cpu {
namespace {

constexpr int64_t kChunk = 4096;  // slots sorted by one thread

int64_t used_rows(const ExpertOrder& order) {
  const int64_t* rows = order.rows_per_expert.data<int64_t>();
  int64_t sum = 0;
  for (int64_t e = 0; e < order.rows_per_expert.numel(); ++e) sum += rows[e];
  return sum;
}

template <class T>
void add_row(T* sum, const T* term, int64_t C) {
#pragma omp simd
  for (int64_t c = 0; c < C; ++c) sum[c] += term[c];
}

}  // namespace

void expert_order(Context& ctx, ExpertOrder order, const Tensor& expert_id) {
  const int64_t num_slots = expert_id.numel(), E = order.rows_per_expert.numel();
  const int64_t num_chunks = (num_slots + kChunk - 1) / kChunk;
  const int32_t* id = expert_id.data<int32_t>();
  int32_t *row_of_slot = order.row_of_slot.data<int32_t>(), *slot_of_row = order.slot_of_row.data<int32_t>();
  int64_t* rows_per_expert = order.rows_per_expert.data<int64_t>();
  Scratch scratch(ctx);
  int32_t* next = scratch.array<int32_t>(num_chunks * E);  // (chunk, expert): first its count, then its next row
#pragma omp parallel for schedule(static)
  for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
    int32_t* count = next + chunk * E;
    std::fill_n(count, E, 0);
    for (int64_t slot = chunk * kChunk; slot < std::min(num_slots, (chunk + 1) * kChunk); ++slot) {
      assert(-1 <= id[slot] && id[slot] < E);
      if (id[slot] >= 0) ++count[id[slot]];
    }
  }
  int32_t row = 0;
  for (int64_t e = 0; e < E; ++e) {
    const int32_t first = row;
    for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
      const int32_t count = next[chunk * E + e];
      next[chunk * E + e] = row;
      row += count;
    }
    rows_per_expert[e] = row - first;
  }
  std::fill(slot_of_row + row, slot_of_row + num_slots, -1);
#pragma omp parallel for schedule(static)
  for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
    int32_t* next_row = next + chunk * E;
    for (int64_t slot = chunk * kChunk; slot < std::min(num_slots, (chunk + 1) * kChunk); ++slot) {
      row_of_slot[slot] = id[slot] < 0 ? -1 : next_row[id[slot]]++;
      if (row_of_slot[slot] >= 0) slot_of_row[row_of_slot[slot]] = static_cast<int32_t>(slot);
    }
  }
}

void gather_rows(Context&, Tensor rows, const Tensor& x, const ExpertOrder& order) {
  const int64_t R = rows.dim(0), K = order.row_of_slot.dim(1), row_bytes = x.dim(1) * size_of(x.dtype());
  const int64_t used = used_rows(order);
  check<ShapeError>(R <= used, "rows: has ", R, " rows, but rows_per_expert sums to ", used);
  const int32_t* slot_of_row = order.slot_of_row.data<int32_t>();
  auto* to = static_cast<std::byte*>(rows.raw());
  const auto* from = static_cast<const std::byte*>(x.raw());
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < R; ++r) std::memcpy(to + r * row_bytes, from + slot_of_row[r] / K * row_bytes, row_bytes);
}

void combine_rows(Context&, Tensor y, const Tensor& rows, const ExpertOrder& order) {
  const int64_t N = y.dim(0), C = y.dim(1), K = order.row_of_slot.dim(1);
  const int64_t used = used_rows(order);
  check<ShapeError>(rows.dim(0) >= used, "rows: has ", rows.dim(0), " rows, but rows_per_expert sums to ", used);
  const int32_t* row_of_slot = order.row_of_slot.data<int32_t>();
  dispatch_float("y", y, [&]<class T> {
    T* y_data = y.data<T>();
    const T* rows_data = rows.data<T>();
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; ++n) {
      T* sum = y_data + n * C;
      std::fill_n(sum, C, T(0));
      for (int64_t k = 0; k < K; ++k) {
        const int64_t row = row_of_slot[n * K + k];
        if (row >= 0) add_row(sum, rows_data + row * C, C);
      }
    }
  });
}

// Every thread takes its share of each block's rows, so one large block keeps all of them busy.
void move_row_blocks(Context&, Tensor dst, const Tensor& src, const RowBlock* blocks, int64_t num_blocks) {
  const int64_t row_bytes = src.dim(1) * size_of(src.dtype());
  auto* to = static_cast<std::byte*>(dst.raw());
  const auto* from = static_cast<const std::byte*>(src.raw());
#pragma omp parallel
  for (int64_t b = 0; b < num_blocks; ++b) {
#pragma omp for schedule(static) nowait
    for (int64_t r = 0; r < blocks[b].rows; ++r)
      std::memcpy(to + (blocks[b].to + r) * row_bytes, from + (blocks[b].from + r) * row_bytes, row_bytes);
  }
}

}  // namespace braid::cpu
