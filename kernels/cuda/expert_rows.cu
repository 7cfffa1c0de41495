#include "kernels/expert_rows.h"

#include <algorithm>
#include <climits>

#include "kernels/core/copy.h"
#include "kernels/cuda/row_access.cuh"
#include "kernels/cuda/warp_scan.cuh"

namespace braid::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxExperts = 4096;  // what a block of the sort has shared memory for
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kSlotsPerWarp = 256;
constexpr int kSlotsPerBlock = kWarps * kSlotsPerWarp;  // a chunk of the sort

// Stable counting sort in three steps: how many pairs of each chunk go to each expert; for each expert, the running sum
// of that over the chunks; the rows. `before` (E, num_chunks) holds the counts first, then the running sums.

// One block per chunk. Reads 4 bytes per slot.
__global__ void __launch_bounds__(kThreads)
    count_kernel(int32_t* before, const int32_t* expert_id, int64_t num_slots, int num_experts) {
  extern __shared__ int32_t count[];  // (E)
  for (int e = threadIdx.x; e < num_experts; e += kThreads) count[e] = 0;
  __syncthreads();
  const int64_t first = int64_t(blockIdx.x) * kSlotsPerBlock;
  const int64_t last = min(num_slots, first + kSlotsPerBlock);
  for (int64_t slot = first + threadIdx.x; slot < last; slot += kThreads)
    if (const int32_t e = expert_id[slot]; e >= 0) atomicAdd(&count[e], 1);
  __syncthreads();
  for (int e = threadIdx.x; e < num_experts; e += kThreads) before[int64_t(e) * gridDim.x + blockIdx.x] = count[e];
}

// One warp per expert.
__global__ void __launch_bounds__(kThreads)
    running_sum_kernel(int32_t* before, int64_t* rows_per_expert, int num_chunks, int num_experts) {
  const int e = blockIdx.x * kWarps + threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  if (e >= num_experts) return;
  int32_t* row = before + int64_t(e) * num_chunks;
  int32_t total = 0;
  for (int first = 0; first < num_chunks; first += kWarpSize) {
    const int chunk = first + lane;
    const int32_t count = chunk < num_chunks ? row[chunk] : 0;
    const int32_t sum = inclusive_scan(count);
    if (chunk < num_chunks) row[chunk] = total + sum - count;
    total += __shfl_sync(kAllLanes, sum, kWarpSize - 1);
  }
  if (lane == 0) rows_per_expert[e] = total;
}

// One block per chunk, each of its warps a consecutive piece. A warp takes 32 slots at a time; among them, those of the
// same expert find each other and rank by lane. Reads 4 and writes 8 bytes per slot.
__global__ void __launch_bounds__(kThreads)
    rows_kernel(int32_t* row_of_slot, int32_t* slot_of_row, const int32_t* expert_id, const int32_t* before,
                const int64_t* rows_per_expert, int64_t num_slots, int num_experts) {
  extern __shared__ int32_t shared[];
  int32_t* first_row = shared;                                      // (E) of this chunk's pairs of an expert
  auto* count = reinterpret_cast<uint16_t*>(shared + num_experts);  // (kWarps, E) at most kSlotsPerBlock
  __shared__ int32_t num_used_rows;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  uint16_t* warp_count = count + warp * num_experts;

  for (int e = threadIdx.x; e < num_experts; e += kThreads) first_row[e] = static_cast<int32_t>(rows_per_expert[e]);
  for (int i = threadIdx.x; i < kWarps * num_experts; i += kThreads) count[i] = 0;
  __syncthreads();
  if (warp == 0) {  // where each expert begins
    int32_t total = 0;
    for (int first = 0; first < num_experts; first += kWarpSize) {
      const int e = first + lane;
      const int32_t rows = e < num_experts ? first_row[e] : 0;
      const int32_t sum = inclusive_scan(rows);
      if (e < num_experts) first_row[e] = total + sum - rows;
      total += __shfl_sync(kAllLanes, sum, kWarpSize - 1);
    }
    if (lane == 0) num_used_rows = total;
  }

  const int64_t warp_first = int64_t(blockIdx.x) * kSlotsPerBlock + warp * kSlotsPerWarp;
  int32_t ids[kSlotsPerWarp / kWarpSize];
#pragma unroll
  for (int i = 0; i < kSlotsPerWarp / kWarpSize; ++i) {
    const int64_t slot = warp_first + i * kWarpSize + lane;
    ids[i] = slot < num_slots ? expert_id[slot] : -1;
  }
#pragma unroll
  for (int i = 0; i < kSlotsPerWarp / kWarpSize; ++i) {
    const unsigned same = __match_any_sync(kAllLanes, ids[i]);
    if (ids[i] >= 0 && lane == __ffs(same) - 1) warp_count[ids[i]] += __popc(same);
    __syncwarp();
  }
  __syncthreads();
  for (int e = threadIdx.x; e < num_experts; e += kThreads) {
    first_row[e] += before[int64_t(e) * gridDim.x + blockIdx.x];
    uint16_t sum = 0;
    for (int w = 0; w < kWarps; ++w) {
      const uint16_t of_warp = count[w * num_experts + e];
      count[w * num_experts + e] = sum;
      sum += of_warp;
    }
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kSlotsPerWarp / kWarpSize; ++i) {
    const unsigned same = __match_any_sync(kAllLanes, ids[i]);
    int32_t row = -1;
    if (ids[i] >= 0) row = first_row[ids[i]] + warp_count[ids[i]] + __popc(same & ((1u << lane) - 1));
    __syncwarp();
    if (ids[i] >= 0 && lane == __ffs(same) - 1) warp_count[ids[i]] += __popc(same);
    __syncwarp();
    const int64_t slot = warp_first + i * kWarpSize + lane;
    if (slot < num_slots) {
      row_of_slot[slot] = row;
      if (row >= 0) slot_of_row[row] = static_cast<int32_t>(slot);
      if (slot >= num_used_rows) slot_of_row[slot] = -1;  // no pair has that row
    }
  }
}

// One thread per token and V of its row, which it reads once and writes to each of the token's rows: reads N C and
// writes R C elements.
template <class V, class T>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(T* rows, const T* x, const int32_t* row_of_slot, int64_t R, int64_t N, int64_t C, int64_t K) {
  const int64_t vectors = C / V::kSize, i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t n = i / vectors, c = i % vectors * V::kSize;
  if (n >= N) return;
  const V v = V::load(x + n * C + c);
#pragma unroll 5
  for (int64_t k = 0; k < K; ++k) {
    const int64_t row = row_of_slot[n * K + k];
    if (0 <= row && row < R) v.store(rows + row * C + c);
  }
}

// What becomes of what y holds.
enum class Before { kOverwritten, kFirstInSum, kAddedToSum };

// One thread per token and V of its row; kBatch rows are in flight at a time. Reads R C and writes N C elements.
template <Before kBefore, class W, class V, class Y, class T>
__global__ void __launch_bounds__(kThreads)
    combine_kernel(Y* y, const T* rows, const int32_t* row_of_slot, int64_t R, int64_t N, int64_t C, int64_t K) {
  static_assert(W::kSize == V::kSize);
  constexpr int kBatch = 5;
  const int64_t vectors = C / V::kSize, i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t n = i / vectors, c = i % vectors * V::kSize;
  if (n >= N) return;
  float sum[V::kSize] = {};
  W before;
  if constexpr (kBefore != Before::kOverwritten) before = W::load(y + n * C + c);
  if constexpr (kBefore == Before::kFirstInSum) {
#pragma unroll
    for (int j = 0; j < V::kSize; ++j) sum[j] = before[j];
  }
  for (int64_t first = 0; first < K; first += kBatch) {
    int32_t row[kBatch];
    V term[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      row[k] = first + k < K ? row_of_slot[n * K + first + k] : -1;
      if (row[k] >= R) row[k] = -1;
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k)
      if (row[k] >= 0) term[k] = V::load(rows + row[k] * C + c);
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      if (row[k] < 0) continue;
#pragma unroll
      for (int j = 0; j < V::kSize; ++j) sum[j] += term[k][j];
    }
  }
  W w;
#pragma unroll
  for (int j = 0; j < V::kSize; ++j) w.set(j, kBefore == Before::kAddedToSum ? before[j] + sum[j] : sum[j]);
  w.store(y + n * C + c);
}

// Where a row is as many V as a block of whole warps has threads: a block per token. A warp reads the token's places
// once, a lane each, and goes through those that there are. The kernels above, which find their token by a division and
// look at every place, take longer for that than for the rows where most places are empty, as on one of several ranks:
// at eight, combining 189 instead of 134 ms and gathering 124 instead of 98 of a step of 3 s. Where all ten places are
// taken gathering takes the same time and combining 4.1 instead of 3.3 ms, as fewer rows are in flight.
constexpr int kMostRowThreads = 1024;

bool fits_block_per_token(int64_t C, int size, int64_t K) {
  return C % (kWarpSize * size) == 0 && C / size <= kMostRowThreads && K <= kWarpSize;
}

__device__ __forceinline__ int32_t row_of_lane(const int32_t* row_of_slot, int64_t token, int K) {
  const int lane = threadIdx.x % kWarpSize;
  return lane < K ? row_of_slot[token * K + lane] : -1;
}

// Reads the rows of tokens that have any, and writes R C elements.
template <class V, class T>
__global__ void __launch_bounds__(kMostRowThreads)
    gather_row_kernel(T* rows, const T* x, const int32_t* row_of_slot, int64_t R, int C, int K) {
  const int64_t n = blockIdx.x;
  const int c = threadIdx.x * V::kSize;
  const int32_t own = row_of_lane(row_of_slot, n, K);
  unsigned left = __ballot_sync(kAllLanes, 0 <= own && own < R);
  if (left == 0) return;
  const V v = V::load(x + n * C + c);
  for (; left != 0; left &= left - 1) v.store(rows + int64_t{__shfl_sync(kAllLanes, own, __ffs(left) - 1)} * C + c);
}

// kBatch rows are in flight at a time. Reads R C and writes N C elements.
template <Before kBefore, class W, class V, class Y, class T>
__global__ void __launch_bounds__(kMostRowThreads)
    combine_row_kernel(Y* y, const T* rows, const int32_t* row_of_slot, int64_t R, int C, int K) {
  static_assert(W::kSize == V::kSize);
  constexpr int kBatch = 5;
  const int64_t n = blockIdx.x;
  const int c = threadIdx.x * V::kSize;
  const int32_t own = row_of_lane(row_of_slot, n, K);
  unsigned left = __ballot_sync(kAllLanes, 0 <= own && own < R);
  float sum[V::kSize] = {};
  W before;
  if constexpr (kBefore != Before::kOverwritten) before = W::load(y + n * C + c);
  if constexpr (kBefore == Before::kFirstInSum) {
#pragma unroll
    for (int j = 0; j < V::kSize; ++j) sum[j] = before[j];
  }
  while (left != 0) {
    V term[kBatch];
    const int count = min(kBatch, __popc(left));
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      if (k >= count) break;
      term[k] = V::load(rows + int64_t{__shfl_sync(kAllLanes, own, __ffs(left) - 1)} * C + c);
      left &= left - 1;
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      if (k >= count) break;
#pragma unroll
      for (int j = 0; j < V::kSize; ++j) sum[j] += term[k][j];
    }
  }
  W w;
#pragma unroll
  for (int j = 0; j < V::kSize; ++j) w.set(j, kBefore == Before::kAddedToSum ? before[j] + sum[j] : sum[j]);
  w.store(y + n * C + c);
}

// One thread per pair.
__global__ void __launch_bounds__(kThreads)
    window_kernel(int32_t* window_row, int32_t* window_slot, const int32_t* row_of_slot, const int32_t* slot_of_row,
                  int64_t num_slots, int64_t first_row, int64_t num_rows) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= num_slots) return;
  const int64_t row = row_of_slot[i] - first_row;
  window_row[i] = row_of_slot[i] >= 0 && 0 <= row && row < num_rows ? static_cast<int32_t>(row) : -1;
  window_slot[i] = i < num_rows && first_row + i < num_slots ? slot_of_row[first_row + i] : -1;
}

// One warp.
__global__ void window_counts_kernel(int64_t* window, const int64_t* rows_per_expert, int num_experts,
                                     int64_t first_row, int64_t num_rows) {
  const int lane = threadIdx.x;
  int64_t total = 0;
  for (int first = 0; first < num_experts; first += kWarpSize) {
    const int e = first + lane;
    const int64_t rows = e < num_experts ? rows_per_expert[e] : 0;
    const int32_t sum = inclusive_scan(static_cast<int32_t>(rows));
    const int64_t begin = total + sum - rows;
    const int64_t from = max(begin, first_row), to = min(begin + rows, first_row + num_rows);
    if (e < num_experts) window[e] = max(int64_t{0}, to - from);
    total += __shfl_sync(kAllLanes, sum, kWarpSize - 1);
  }
}

// One thread per token.
__global__ void __launch_bounds__(kThreads)
    places_kernel(int32_t* place, const int32_t* expert_id, int64_t N, int K, int S, int experts_per_rank,
                  int64_t rank_stride, int64_t token_stride) {
  const int64_t n = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (n >= N) return;
  int last = -1;
  for (int i = 0; i < S; ++i) {
    int next = INT_MAX;  // the first rank after the last
    for (int k = 0; k < K; ++k) {
      const int32_t id = expert_id[n * K + k];
      const int rank = id / experts_per_rank;
      if (id >= 0 && rank > last) next = min(next, rank);
    }
    place[n * S + i] = next == INT_MAX ? -1 : static_cast<int32_t>(next * rank_stride + n * token_stride);
    last = next;
  }
}

__global__ void __launch_bounds__(kThreads) local_ids_kernel(int32_t* ids, int64_t numel, int first, int count) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= numel) return;
  const int32_t local = ids[i] - first;
  ids[i] = 0 <= local && local < count ? local : -1;
}

// One warp.
__global__ void limit_kernel(int64_t* rows_per_expert, int64_t* needed, int64_t max_rows, int num_experts) {
  const int lane = threadIdx.x;
  int64_t total = 0;
  for (int first = 0; first < num_experts; first += kWarpSize) {
    const int e = first + lane;
    const int64_t rows = e < num_experts ? rows_per_expert[e] : 0;
    const int32_t sum = inclusive_scan(static_cast<int32_t>(rows));
    const int64_t room = max(int64_t{0}, max_rows - (total + sum - rows));
    if (e < num_experts) rows_per_expert[e] = min(rows, room);
    total += __shfl_sync(kAllLanes, sum, kWarpSize - 1);
  }
  if (lane == 0) *needed = max(*needed, total);
}

template <Before kBefore>
void combine(Context& ctx, Tensor y, const Tensor& rows, const ExpertOrder& order, const char* name) {
  const int64_t R = rows.dim(0), N = y.dim(0), C = y.dim(1), K = order.row_of_slot.dim(1);
  auto launch = [&]<class W, class V, class Y, class T>(const Y*, const T*) {
    const bool most_are_empty = 2 * R < N * K;
    if (most_are_empty && fits_block_per_token(C, V::kSize, K)) {
      combine_row_kernel<kBefore, W, V>
          <<<N, C / V::kSize, 0, stream_of(ctx)>>>(pointer<Y>(y), pointer<T>(rows), pointer<int32_t>(order.row_of_slot),
                                                   R, static_cast<int>(C), static_cast<int>(K));
      return check_launch(name);
    }
    combine_kernel<kBefore, W, V><<<ceil_div(N * (C / V::kSize), kThreads), kThreads, 0, stream_of(ctx)>>>(
        pointer<Y>(y), pointer<T>(rows), pointer<int32_t>(order.row_of_slot), R, N, C, K);
    check_launch(name);
  };
  if (y.dtype() == rows.dtype()) {
    dispatch_activation("y", y, [&]<class T> {
      dispatch_width<T>(C, {y.raw(), rows.raw()}, [&]<class V> {
        launch.template operator()<V, V>(static_cast<const T*>(nullptr), static_cast<const T*>(nullptr));
      });
    });
    return;
  }
  // bf16 on one side, fp32 on the other.
  dispatch_width<bf16>(C, {y.raw(), rows.raw()}, [&]<class V> {
    using Wide = Floats<V::kSize>;
    if constexpr (kBefore == Before::kFirstInSum)
      launch.template operator()<Wide, V>(static_cast<const float*>(nullptr), static_cast<const bf16*>(nullptr));
    else launch.template operator()<V, Wide>(static_cast<const bf16*>(nullptr), static_cast<const float*>(nullptr));
  });
}

}  // namespace

void expert_order(Context& ctx, ExpertOrder order, const Tensor& expert_id) {
  const int64_t num_slots = expert_id.numel(), E = order.rows_per_expert.numel();
  check<ShapeError>(E <= kMaxExperts, "rows_per_expert: ", E, " experts, but at most ", kMaxExperts, " on the GPU");
  if (num_slots == 0) return fill_zero(ctx, order.rows_per_expert);
  const int64_t num_chunks = ceil_div(num_slots, kSlotsPerBlock);
  cudaStream_t stream = stream_of(ctx);
  Scratch scratch(ctx);
  auto* before = scratch.array<int32_t>(E * num_chunks);
  if (ctx.counts_only()) return;
  count_kernel<<<num_chunks, kThreads, E * sizeof(int32_t), stream>>>(before, pointer<int32_t>(expert_id), num_slots,
                                                                      E);
  check_launch("expert_order count");
  running_sum_kernel<<<ceil_div(E, kWarps), kThreads, 0, stream>>>(before, pointer<int64_t>(order.rows_per_expert),
                                                                   num_chunks, E);
  check_launch("expert_order running sum");
  const int shared_bytes = static_cast<int>(E * (sizeof(int32_t) + kWarps * sizeof(uint16_t)));
  check_cuda(cudaFuncSetAttribute(rows_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
             "cudaFuncSetAttribute");
  rows_kernel<<<num_chunks, kThreads, shared_bytes, stream>>>(
      pointer<int32_t>(order.row_of_slot), pointer<int32_t>(order.slot_of_row), pointer<int32_t>(expert_id), before,
      pointer<int64_t>(order.rows_per_expert), num_slots, E);
  check_launch("expert_order rows");
}

void gather_rows(Context& ctx, Tensor rows, const Tensor& x, const ExpertOrder& order) {
  const int64_t R = rows.dim(0), N = x.dim(0), C = x.dim(1), K = order.row_of_slot.dim(1);
  if (N == 0) return;
  dispatch_activation("x", x, [&]<class T> {
    dispatch_width<T>(C, {rows.raw(), x.raw()}, [&]<class V> {
      if (fits_block_per_token(C, V::kSize, K)) {
        gather_row_kernel<V><<<N, C / V::kSize, 0, stream_of(ctx)>>>(pointer<T>(rows), pointer<T>(x),
                                                                     pointer<int32_t>(order.row_of_slot), R,
                                                                     static_cast<int>(C), static_cast<int>(K));
        return check_launch("gather_rows");
      }
      gather_kernel<V><<<ceil_div(N * (C / V::kSize), kThreads), kThreads, 0, stream_of(ctx)>>>(
          pointer<T>(rows), pointer<T>(x), pointer<int32_t>(order.row_of_slot), R, N, C, K);
      check_launch("gather_rows");
    });
  });
}

void combine_rows(Context& ctx, Tensor y, const Tensor& rows, const ExpertOrder& order, Accumulate accumulate) {
  if (ctx.counts_only()) return;
  if (accumulate == Accumulate::kYes) combine<Before::kAddedToSum>(ctx, y, rows, order, "combine_rows");
  else combine<Before::kOverwritten>(ctx, y, rows, order, "combine_rows");
}

void add_rows(Context& ctx, Tensor sums, const Tensor& rows, const ExpertOrder& order) {
  combine<Before::kFirstInSum>(ctx, sums, rows, order, "add_rows");
}

void window_of_order(Context& ctx, ExpertOrder window, const ExpertOrder& order, int64_t first_row, int64_t num_rows) {
  const int64_t num_slots = order.row_of_slot.numel();
  if (num_slots > 0) {
    window_kernel<<<ceil_div(num_slots, kThreads), kThreads, 0, stream_of(ctx)>>>(
        pointer<int32_t>(window.row_of_slot), pointer<int32_t>(window.slot_of_row), pointer<int32_t>(order.row_of_slot),
        pointer<int32_t>(order.slot_of_row), num_slots, first_row, num_rows);
    check_launch("window_of_order");
  }
  window_counts_kernel<<<1, kWarpSize, 0, stream_of(ctx)>>>(pointer<int64_t>(window.rows_per_expert),
                                                            pointer<int64_t>(order.rows_per_expert),
                                                            order.rows_per_expert.numel(), first_row, num_rows);
  check_launch("window_of_order counts");
}

void token_places(Context& ctx, Tensor place, const Tensor& expert_id, int64_t experts_per_rank, int64_t rank_stride,
                  int64_t token_stride) {
  const int64_t N = expert_id.dim(0);
  places_kernel<<<ceil_div(N, kThreads), kThreads, 0, stream_of(ctx)>>>(
      pointer<int32_t>(place), pointer<int32_t>(expert_id), N, expert_id.dim(1), place.dim(1), experts_per_rank,
      rank_stride, token_stride);
  check_launch("token_places");
}

void local_expert_ids(Context& ctx, Tensor ids, int64_t first, int64_t count) {
  local_ids_kernel<<<ceil_div(ids.numel(), kThreads), kThreads, 0, stream_of(ctx)>>>(pointer<int32_t>(ids), ids.numel(),
                                                                                     first, count);
  check_launch("local_expert_ids");
}

void limit_rows(Context& ctx, Tensor rows_per_expert, Tensor needed, int64_t max_rows) {
  limit_kernel<<<1, kWarpSize, 0, stream_of(ctx)>>>(pointer<int64_t>(rows_per_expert), pointer<int64_t>(needed),
                                                    max_rows, rows_per_expert.numel());
  check_launch("limit_rows");
}

}  // namespace braid::cuda
