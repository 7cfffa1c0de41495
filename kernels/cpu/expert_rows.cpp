#include "kernels/expert_rows.h"

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <limits>

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

// The first rank after `rank` that holds one of a token's K experts, or -1.
int64_t next_rank(const int32_t* id, int64_t K, int64_t experts_per_rank, int64_t rank) {
  int64_t next = -1;
  for (int64_t k = 0; k < K; ++k) {
    if (id[k] < 0) continue;
    const int64_t r = id[k] / experts_per_rank;
    if (r > rank && (next < 0 || r < next)) next = r;
  }
  return next;
}

void check_rows(const Tensor& rows, const ExpertOrder& order) {
  const int64_t used = used_rows(order);
  check<ShapeError>(rows.dim(0) >= used, "rows: has ", rows.dim(0), " rows, but rows_per_expert sums to ", used);
}

template <class T>
void add_row(T* sum, const T* term, int64_t C) {
#pragma omp simd
  for (int64_t c = 0; c < C; ++c) sum[c] += term[c];
}

// The rows of a token's slots, in order.
template <class T>
void add_token(T* sum, const T* rows, const int32_t* row_of_slot, int64_t K, int64_t C) {
  for (int64_t k = 0; k < K; ++k)
    if (const int64_t row = row_of_slot[k]; row >= 0) add_row(sum, rows + row * C, C);
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
  if (ctx.counts_only()) return;
#pragma omp parallel for schedule(static) if (num_chunks > 1)
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
#pragma omp parallel for schedule(static) if (num_chunks > 1)
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
#pragma omp parallel for schedule(static) if (R > K)  // a token is copied sooner than a thread wakes
  for (int64_t r = 0; r < R; ++r) std::memcpy(to + r * row_bytes, from + slot_of_row[r] / K * row_bytes, row_bytes);
}

void combine_rows(Context& ctx, Tensor y, const Tensor& rows, const ExpertOrder& order, Accumulate accumulate) {
  const int64_t N = y.dim(0), C = y.dim(1), K = order.row_of_slot.dim(1);
  const bool added = accumulate == Accumulate::kYes;
  dispatch_float("y", y, [&]<class T> {
    Scratch scratch(ctx);
    T* sums = added ? scratch.array<T>(omp_get_max_threads() * C) : nullptr;
    if (ctx.counts_only()) return;
    check_rows(rows, order);
    const int32_t* row_of_slot = order.row_of_slot.data<int32_t>();
#pragma omp parallel for schedule(static) if (N > 1)
    for (int64_t n = 0; n < N; ++n) {
      T *y_row = y.data<T>() + n * C, *sum = added ? sums + omp_get_thread_num() * C : y_row;
      std::fill_n(sum, C, T(0));
      add_token(sum, rows.data<T>(), row_of_slot + n * K, K, C);
      if (added) add_row(y_row, sum, C);
    }
  });
}

void add_rows(Context&, Tensor sums, const Tensor& rows, const ExpertOrder& order) {
  const int64_t N = sums.dim(0), C = sums.dim(1), K = order.row_of_slot.dim(1);
  check_rows(rows, order);
  const int32_t* row_of_slot = order.row_of_slot.data<int32_t>();
  dispatch_float("sums", sums, [&]<class T> {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; ++n) add_token(sums.data<T>() + n * C, rows.data<T>(), row_of_slot + n * K, K, C);
  });
}

void window_of_order(Context&, ExpertOrder window, const ExpertOrder& order, int64_t first_row, int64_t num_rows) {
  const int32_t *row_of_slot = order.row_of_slot.data<int32_t>(), *slot_of_row = order.slot_of_row.data<int32_t>();
  const int64_t num_slots = order.row_of_slot.numel();
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < num_slots; ++i) {
    const int64_t row = row_of_slot[i] - first_row;
    const bool inside = row_of_slot[i] >= 0 && 0 <= row && row < num_rows;
    window.row_of_slot.data<int32_t>()[i] = inside ? static_cast<int32_t>(row) : -1;
    window.slot_of_row.data<int32_t>()[i] = i < num_rows && first_row + i < num_slots ? slot_of_row[first_row + i] : -1;
  }
  const int64_t* rows = order.rows_per_expert.data<int64_t>();
  int64_t begin = 0;
  for (int64_t e = 0; e < order.rows_per_expert.numel(); begin += rows[e], ++e) {
    const int64_t from = std::max(begin, first_row), to = std::min(begin + rows[e], first_row + num_rows);
    window.rows_per_expert.data<int64_t>()[e] = std::max<int64_t>(0, to - from);
  }
}

void token_places(Context&, Tensor place, const Tensor& expert_id, int64_t experts_per_rank, int64_t rank_stride,
                  int64_t token_stride) {
  const int64_t N = expert_id.dim(0), K = expert_id.dim(1), S = place.dim(1);
#pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < N; ++n) {
    const int32_t* id = expert_id.data<int32_t>() + n * K;
    int64_t rank = -1;
    for (int64_t i = 0; i < S; ++i) {
      rank = next_rank(id, K, experts_per_rank, rank);
      place.data<int32_t>()[n * S + i] = rank < 0 ? -1 : static_cast<int32_t>(rank * rank_stride + n * token_stride);
      if (rank < 0) rank = std::numeric_limits<int32_t>::max();  // none follows
    }
  }
}

void local_expert_ids(Context&, Tensor ids, int64_t first, int64_t count) {
  int32_t* id = ids.data<int32_t>();
  for (int64_t i = 0; i < ids.numel(); ++i) {
    const int64_t local = id[i] - first;
    id[i] = 0 <= local && local < count ? static_cast<int32_t>(local) : -1;
  }
}

void limit_rows(Context&, Tensor rows_per_expert, Tensor needed, int64_t max_rows) {
  int64_t sum = 0;
  for (int64_t e = 0; e < rows_per_expert.numel(); ++e) {
    int64_t& rows = rows_per_expert.data<int64_t>()[e];
    const int64_t room = std::max<int64_t>(0, max_rows - sum);
    sum += rows;
    rows = std::min(rows, room);
  }
  *needed.data<int64_t>() = std::max(*needed.data<int64_t>(), sum);
}

}  // namespace braid::cpu
