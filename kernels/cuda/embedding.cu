#include "kernels/embedding.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cub/device/device_radix_sort.cuh>
#include <limits>

#include "kernels/cuda/row_access.cuh"

namespace braid::cuda {
namespace {

constexpr int kWarps = 4;  // of a block of the forward pass
constexpr int kThreads = 256;
constexpr int kRowsAtOnce = 8;  // of d_y that a thread reads before it adds them

// A warp per row; reads and writes 2NC bytes each in bf16.
template <class V, class X>
__global__ void __launch_bounds__(kWarpSize* kWarps) forward_kernel(X* __restrict__ y, const int64_t* __restrict__ ids,
                                                                    const X* __restrict__ table, int64_t N, int64_t C) {
  const int64_t n = int64_t(blockIdx.x) * kWarps + threadIdx.y;
  if (n >= N) return;
  const int64_t id = ids[n], first = int64_t(threadIdx.x) * V::kSize, step = kWarpSize * V::kSize;
  if (id < 0) {
    V zeros;
    for (int i = 0; i < V::kSize; ++i) zeros.set(i, 0);
    for (int64_t c = first; c < C; c += step) zeros.store(y + n * C + c);
    return;
  }
#pragma unroll 4
  for (int64_t c = first; c < C; c += step) V::load(table + id * C + c).store(y + n * C + c);
}

// Keys for the sort: the id, or V (behind all ids) where there is none.
__global__ void keys_kernel(int32_t* key, int32_t* token, const int64_t* ids, int64_t N, int64_t V) {
  const int64_t n = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (n >= N) return;
  key[n] = static_cast<int32_t>(ids[n] < 0 ? V : ids[n]);
  token[n] = static_cast<int32_t>(n);
}

// Tokens sorted by id, those of one id in ascending order. Block i owns the run of equal ids that begins at entry i, if
// one does: a thread adds a vector of columns of its rows, one after the other, to the row of the table. Reads d_y once
// and, for every id that occurs, reads and writes a row of d_table.
template <class V, class X>
__global__ void __launch_bounds__(kThreads)
    add_runs_kernel(float* d_table, const X* __restrict__ d_y, const int32_t* __restrict__ key,
                    const int32_t* __restrict__ token, int64_t N, int64_t C, int num_ids) {
  using F = Floats<V::kSize>;
  const int64_t begin = blockIdx.x;
  const int64_t id = key[begin];
  if (id >= num_ids || (begin > 0 && key[begin - 1] == id)) return;
  for (int64_t c = int64_t(threadIdx.x) * V::kSize; c < C; c += kThreads * V::kSize) {
    float* const to = d_table + id * C + c;
    F sum = F::load(to);
    int rows = kRowsAtOnce;  // that belong to the run, of those read last
    for (int64_t first = begin; rows == kRowsAtOnce; first += kRowsAtOnce) {
      V row[kRowsAtOnce];
      rows = 0;
#pragma unroll
      for (int j = 0; j < kRowsAtOnce; ++j) {
        if (first + j >= N || key[first + j] != id) continue;  // sorted: nor do the entries behind it belong
        row[j] = V::load(d_y + token[first + j] * C + c);
        ++rows;
      }
#pragma unroll
      for (int j = 0; j < kRowsAtOnce; ++j) {
        if (j >= rows) continue;
#pragma unroll
        for (int i = 0; i < V::kSize; ++i) sum[i] += row[j][i];
      }
    }
    sum.store(to);
  }
}

}  // namespace

void embedding_forward(Context& ctx, Tensor y, const Tensor& ids, const Tensor& table) {
  const int64_t N = y.dim(0), C = y.dim(1);
  dispatch_activation("table", table, [&]<class X> {
    dispatch_width<X>(C, {y.raw(), table.raw()}, [&]<class V> {
      forward_kernel<V, X><<<ceil_div(N, kWarps), dim3(kWarpSize, kWarps), 0, stream_of(ctx)>>>(
          pointer<X>(y), pointer<int64_t>(ids), pointer<X>(table), N, C);
      check_launch("embedding_forward");
    });
  });
}

void embedding_backward(Context& ctx, Tensor d_table, const Tensor& d_y, const Tensor& ids) {
  const int64_t N = d_y.dim(0), C = d_y.dim(1), V = d_table.dim(0);
  assert(std::max(N, V) <= std::numeric_limits<int32_t>::max());
  const int num_tokens = static_cast<int>(N), key_bits = std::bit_width(static_cast<uint64_t>(V));
  cudaStream_t stream = stream_of(ctx);
  Scratch scratch(ctx);
  int32_t *key = scratch.array<int32_t>(N), *sorted_key = scratch.array<int32_t>(N);
  int32_t *token = scratch.array<int32_t>(N), *sorted_token = scratch.array<int32_t>(N);
  const bool counts = ctx.counts_only();
  if (!counts) keys_kernel<<<ceil_div(N, kThreads), kThreads, 0, stream>>>(key, token, pointer<int64_t>(ids), N, V);
  if (!counts) check_launch("embedding keys");
  size_t sort_bytes = static_cast<size_t>(8 * N + (int64_t{1} << 20));  // a second copy, and counts: of a GPU to come
  if (ctx.gpu().is_there())
    check_cuda(cub::DeviceRadixSort::SortPairs(nullptr, sort_bytes, key, sorted_key, token, sorted_token, num_tokens, 0,
                                               key_bits, stream),
               "cub::DeviceRadixSort");
  uint8_t* sort_memory = scratch.array<uint8_t>(static_cast<int64_t>(sort_bytes));
  if (counts) return;
  check_cuda(cub::DeviceRadixSort::SortPairs(sort_memory, sort_bytes, key, sorted_key, token, sorted_token, num_tokens,
                                             0, key_bits, stream),
             "cub::DeviceRadixSort");
  dispatch_activation("d_y", d_y, [&]<class X> {
    dispatch_width<X>(C, {d_table.raw(), d_y.raw()}, [&]<class W> {
      add_runs_kernel<W, X><<<N, kThreads, 0, stream>>>(pointer<float>(d_table), pointer<X>(d_y), sorted_key,
                                                        sorted_token, N, C, static_cast<int>(V));
      check_launch("embedding_backward");
    });
  });
}

}  // namespace braid::cuda
