#include "kernels/router.h"

#include "kernels/core/copy.h"
#include "kernels/cuda/common.cuh"
#include "kernels/cuda/ordered_sum.cuh"

namespace braid::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kTokensPerWarp = 8;
constexpr int kTileTokens = kWarps * kTokensPerWarp;  // of one row of the batch, summed by one block
constexpr int64_t kMaxExperts = 4096;                 // a lane holds every 32nd expert of a token in registers
constexpr int64_t kMaxChosen = kWarpSize;             // a lane holds one of the chosen ones

// Calls body.template operator()<kPerLane>() with kPerLane * 32 >= E.
template <class Body>
void dispatch_experts(int64_t E, int64_t K, Body&& body) {
  check<ShapeError>(E <= kMaxExperts && K <= kMaxChosen, "expert_id: ", K, " of ", E,
                    " experts per token, but on the GPU at most ", kMaxChosen, " of ", kMaxExperts);
  if (E <= 128) return body.template operator()<4>();
  if (E <= 512) return body.template operator()<16>();
  if (E <= 1024) return body.template operator()<32>();
  body.template operator()<128>();
}

__device__ __forceinline__ double warp_sum(double x) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kAllLanes, x, offset);
  return x;
}

// A probability as an unsigned number with the same order, above 0; NaN is the highest.
__device__ __forceinline__ unsigned rank_of(float prob) { return (__float_as_uint(prob) & 0x7fffffffu) + 1; }
__device__ __forceinline__ float prob_of(unsigned rank) { return __uint_as_float(rank - 1); }

struct RouterArrays {
  int32_t* expert_id;
  float *gate, *prob, *lse;
};

// One warp per token: softmax over E experts, of which lane l holds e = l, l + 32, ..., then K times the highest of
// what is left. One block per tile of kTileTokens tokens of one row of the batch; it leaves the sums over its tokens in
// tile_prob (tiles, E), tile_count (tiles, E) and tile_z (tiles). Reads 4 N E bytes and writes as many.
template <int kPerLane>
__global__ void __launch_bounds__(kThreads, kPerLane <= 16 ? 4 : 1)
    forward_kernel(RouterArrays out, double* tile_prob, int32_t* tile_count, double* tile_z, const float* logits,
                   const uint8_t* valid, int64_t row_tokens, int64_t tiles_per_row, int E, int K, bool norm_top_k) {
  extern __shared__ double shared[];
  double* sum = shared;                                       // (E)
  double* warp_z = sum + E;                                   // (kWarps)
  auto* count = reinterpret_cast<int32_t*>(warp_z + kWarps);  // (E)
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  for (int e = threadIdx.x; e < E; e += kThreads) count[e] = 0;
  __syncthreads();

  const int64_t b = blockIdx.x / tiles_per_row, tile = blockIdx.x % tiles_per_row;
  float prob_sum[kPerLane] = {};
  double z_sum = 0;
  for (int i = 0; i < kTokensPerWarp; ++i) {
    const int64_t t = tile * kTileTokens + warp * kTokensPerWarp + i;
    if (t >= row_tokens) break;  // the same for all lanes
    const int64_t n = b * row_tokens + t;
    const bool is_valid = valid[n];

    float p[kPerLane], highest = -INFINITY;
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      const int e = j * kWarpSize + lane;
      p[j] = e < E ? logits[n * E + e] : -INFINITY;
      highest = fmaxf(highest, p[j]);
    }
    highest = warp_max(highest);
    float exp_sum = 0;
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      p[j] = j * kWarpSize + lane < E ? expf(p[j] - highest) : 0;
      exp_sum += p[j];
    }
    exp_sum = warp_sum(exp_sum);
    const float scale = 1 / exp_sum, lse = highest + logf(exp_sum);
    if (lane == 0) out.lse[n] = lse;
    unsigned rank[kPerLane];  // 0: no such expert, or already chosen
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      const int e = j * kWarpSize + lane;
      const float prob = p[j] * scale;
      rank[j] = e < E ? rank_of(prob) : 0;
      if (e < E) out.prob[n * E + e] = prob;
      if (is_valid) prob_sum[j] += prob;
    }

    if (!is_valid) {
      if (lane < K) {
        out.expert_id[n * K + lane] = -1;
        out.gate[n * K + lane] = 0;
      }
      continue;
    }
    z_sum += double(lse) * lse;
    int my_id = 0;
    float my_prob = 0, chosen_sum = 0;
    for (int k = 0; k < K; ++k) {
      unsigned best = 0;
      int best_j = 0;
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) {
        if (rank[j] > best) {  // of equal ones the first
          best = rank[j];
          best_j = j;
        }
      }
      const unsigned highest_rank = __reduce_max_sync(kAllLanes, best);
      const int mine = best_j * kWarpSize + lane;
      const int id = __reduce_min_sync(kAllLanes, best == highest_rank ? mine : INT32_MAX);
#pragma unroll
      for (int j = 0; j < kPerLane; ++j)
        if (j * kWarpSize + lane == id) rank[j] = 0;
      const float prob = prob_of(highest_rank);
      chosen_sum += prob;
      if (lane == k) {
        my_id = id;
        my_prob = prob;
      }
    }
    int slot = 0;  // how many of the chosen ones have a lower id
    for (int k = 0; k < K; ++k) slot += __shfl_sync(kAllLanes, my_id, k) < my_id;
    if (lane < K) {
      out.expert_id[n * K + slot] = my_id;
      out.gate[n * K + slot] = norm_top_k ? my_prob / chosen_sum : my_prob;
      atomicAdd(&count[my_id], 1);  // of integers: any order gives the same
    }
  }

  for (int w = 0; w < kWarps; ++w) {
    if (warp == w) {
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) {
        const int e = j * kWarpSize + lane;
        if (e < E) sum[e] = (w > 0 ? sum[e] : 0) + prob_sum[j];
      }
      if (lane == 0) warp_z[w] = z_sum;
    }
    __syncthreads();
  }
  for (int e = threadIdx.x; e < E; e += kThreads) {
    tile_prob[int64_t(blockIdx.x) * E + e] = sum[e];
    tile_count[int64_t(blockIdx.x) * E + e] = count[e];
  }
  if (threadIdx.x == 0) {
    double z = 0;
    for (int w = 0; w < kWarps; ++w) z += warp_z[w];
    tile_z[blockIdx.x] = z;
  }
}

// One thread per row of the batch and expert, and one more per row for z: the sums over the tiles, in order.
__global__ void __launch_bounds__(kThreads)
    sum_tiles_kernel(int64_t* counts, double* prob_sum, double* z_sum, const double* tile_prob,
                     const int32_t* tile_count, const double* tile_z, int64_t tiles_per_row, int E) {
  const int64_t b = blockIdx.y, first = b * tiles_per_row, e = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (e < E) {
    double prob = 0;
    int64_t count = 0;
#pragma unroll 8
    for (int64_t tile = 0; tile < tiles_per_row; ++tile) {
      prob += tile_prob[(first + tile) * E + e];
      count += tile_count[(first + tile) * E + e];
    }
    prob_sum[b * E + e] = prob;
    counts[b * E + e] = count;
  } else if (e == E) {
    double z = 0;
    for (int64_t tile = 0; tile < tiles_per_row; ++tile) z += tile_z[first + tile];
    z_sum[b] = z;
  }
}

// One warp per token: entropy (N), 0 where a token is not valid. Reads 8 N E bytes.
__global__ void __launch_bounds__(kThreads) entropy_kernel(double* entropy, const float* logits, const float* prob,
                                                           const float* lse, const uint8_t* valid, int64_t N, int E) {
  const int64_t n = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarpSize;
  const int lane = threadIdx.x % kWarpSize;
  if (n >= N) return;
  float sum = 0;
  if (valid[n])
    for (int e = lane; e < E; e += kWarpSize) sum += prob[n * E + e] * (lse[n] - logits[n * E + e]);
  const double total = warp_sum(double(sum));
  if (lane == 0) entropy[n] = total;
}

// One warp per token; the formula stands at the CPU's token_backward. In double: when the experts are balanced, the
// differences are far smaller than their terms. Reads 4 N E bytes and writes N E elements.
template <int kPerLane, class T>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(T* d_logits, const float* d_gate, const double* d_prob, double z_weight, const int32_t* expert_id,
                    const float* gate, const float* prob, const float* lse, const uint8_t* valid, int64_t N,
                    int64_t row_tokens, int E, int K, bool norm_top_k) {
  const int64_t n = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarpSize;
  const int lane = threadIdx.x % kWarpSize;
  if (n >= N) return;
  if (!valid[n]) {
    for (int e = lane; e < E; e += kWarpSize) d_logits[n * E + e] = static_cast<T>(0.0f);
    return;
  }
  const double* G = d_prob + n / row_tokens * E;
  int id = 0;
  double w = 0, dw = 0;
  if (lane < K) {
    id = expert_id[n * K + lane];
    w = gate[n * K + lane];
    dw = d_gate[n * K + lane];
  }
  float p[kPerLane];
  double mean_G = 0;
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    const int e = j * kWarpSize + lane;
    p[j] = e < E ? prob[n * E + e] : 0;
    if (e < E) mean_G += p[j] * G[e];
  }
  mean_G = warp_sum(mean_G);
  const double mean_dw = warp_sum(w * dw);
  const double offset_all = 2 * z_weight * lse[n] - mean_G - (norm_top_k ? 0 : mean_dw);
  const double offset_chosen = norm_top_k ? mean_dw : 0;
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    const int e = j * kWarpSize + lane;
    if (e < E) d_logits[n * E + e] = static_cast<T>(static_cast<float>(p[j] * (G[e] + offset_all)));
  }
  __syncwarp();  // the chosen ones are written once more, by other lanes
  if (lane < K) {
    const double d = prob[n * E + id] * (G[id] + offset_all) + w * (dw - offset_chosen);
    d_logits[n * E + id] = static_cast<T>(static_cast<float>(d));
  }
}

}  // namespace

void router_forward(Context& ctx, RouterOutputs out, const Tensor& logits, const Segments& segments, GateNorm norm) {
  const int64_t N = segments.num_tokens(), B = segments.num_rows, E = out.prob.dim(1), K = out.expert_id.dim(1);
  check_dtype(DType::kF32, {{"logits", logits}});
  if (N == 0) {
    fill_zero(ctx, out.counts);
    fill_zero(ctx, out.prob_sum);
    fill_zero(ctx, out.z_sum);
    return;
  }
  const int64_t tiles_per_row = ceil_div(segments.row_tokens, kTileTokens), tiles = B * tiles_per_row;
  cudaStream_t stream = stream_of(ctx);
  Scratch scratch(ctx);
  auto* tile_prob = scratch.array<double>(tiles * E);
  auto* tile_count = scratch.array<int32_t>(tiles * E);
  auto* tile_z = scratch.array<double>(tiles);
  if (ctx.counts_only()) return;
  const RouterArrays arrays = {pointer<int32_t>(out.expert_id), pointer<float>(out.gate), pointer<float>(out.prob),
                               pointer<float>(out.lse)};
  const int shared_bytes = static_cast<int>(E * (sizeof(double) + sizeof(int32_t)) + kWarps * sizeof(double));
  dispatch_experts(E, K, [&]<int kPerLane> {
    check_cuda(
        cudaFuncSetAttribute(forward_kernel<kPerLane>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
        "cudaFuncSetAttribute");
    forward_kernel<kPerLane><<<tiles, kThreads, shared_bytes, stream>>>(
        arrays, tile_prob, tile_count, tile_z, pointer<float>(logits), pointer<uint8_t>(segments.on_gpu.valid),
        segments.row_tokens, tiles_per_row, E, K, norm == GateNorm::kTopK);
    check_launch("router_forward");
  });
  sum_tiles_kernel<<<dim3(ceil_div(E + 1, kThreads), B), kThreads, 0, stream>>>(
      pointer<int64_t>(out.counts), pointer<double>(out.prob_sum), pointer<double>(out.z_sum), tile_prob, tile_count,
      tile_z, tiles_per_row, E);
  check_launch("router_forward sums");
}

void router_entropy(Context& ctx, Tensor out, const Tensor& logits, const RouterOutputs& router,
                    const Segments& segments) {
  const int64_t N = segments.num_tokens(), E = router.prob.dim(1);
  check_dtype(DType::kF32, {{"logits", logits}});
  fill_zero(ctx, out);
  if (N == 0) return;
  Scratch scratch(ctx);
  double* entropy = scratch.array<double>(N);
  if (!ctx.counts_only()) {
    entropy_kernel<<<ceil_div(N, kWarps), kThreads, 0, stream_of(ctx)>>>(
        entropy, pointer<float>(logits), pointer<float>(router.prob), pointer<float>(router.lse),
        pointer<uint8_t>(segments.on_gpu.valid), N, static_cast<int>(E));
    check_launch("router_entropy");
  }
  add_column_sums(ctx, pointer<double>(out), N, 1, [=] __device__(int64_t row, int64_t) { return entropy[row]; });
}

void router_backward(Context& ctx, Tensor d_logits, const Tensor& d_gate, const Tensor& d_prob, double z_weight,
                     const RouterOutputs& out, const Segments& segments, GateNorm norm) {
  const int64_t N = segments.num_tokens(), E = out.prob.dim(1), K = out.expert_id.dim(1);
  dispatch_activation("d_logits", d_logits, [&]<class T> {
    dispatch_experts(E, K, [&]<int kPerLane> {
      backward_kernel<kPerLane><<<ceil_div(N, kWarps), kThreads, 0, stream_of(ctx)>>>(
          pointer<T>(d_logits), pointer<float>(d_gate), pointer<double>(d_prob), z_weight,
          pointer<int32_t>(out.expert_id), pointer<float>(out.gate), pointer<float>(out.prob), pointer<float>(out.lse),
          pointer<uint8_t>(segments.on_gpu.valid), N, segments.row_tokens, E, K, norm == GateNorm::kTopK);
      check_launch("router_backward");
    });
  });
}

}  // namespace braid::cuda
