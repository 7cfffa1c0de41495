#include "kernels/lm_head_loss.h"

#include <algorithm>

#include "kernels/core/copy.h"
#include "kernels/core/memory.h"
#include "kernels/cuda/row_access.cuh"
#include "kernels/matmul.h"

namespace braid::cuda {
namespace {

// The logits of a chunk fit into this much scratch unless that makes fewer tokens than a tile of a product has. Every
// chunk reads and writes the whole fp32 gradient of the weight and reads the weight twice, so chunks are large: with
// kLmHeadMostTokens those bytes take a sixth of the time of the products that move them. Logits are kept in the
// activation dtype; everything that is summed over them is fp32 or wider.
constexpr int64_t kLogitsBytes = int64_t{2560} << 20, kTokenUnit = 128;

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / kWarpSize;

enum class Gradient { kNo, kYes };

template <class T>
__device__ __forceinline__ float exp_of(float x) {
  if constexpr (sizeof(T) == 2) return __expf(x);  // exact to far more than the logits
  else return expf(x);
}

// sum = that of exp(x - highest) over what a thread, a warp or a block has seen.
struct ExpSum {
  float highest = -INFINITY, sum = 0;

  template <class T>
  __device__ __forceinline__ void add(const ExpSum& other) {
    const float both = fmaxf(highest, other.highest);
    if (both == -INFINITY) return;  // nothing was seen yet, and a difference of infinities is NaN
    sum = sum * exp_of<T>(highest - both) + other.sum * exp_of<T>(other.highest - both);
    highest = both;
  }
};

template <class T>
__device__ __forceinline__ ExpSum warp_exp_sum(ExpSum x) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    const ExpSum other = {__shfl_xor_sync(kAllLanes, x.highest, offset), __shfl_xor_sync(kAllLanes, x.sum, offset)};
    // Both lanes add in the same order, so that both get the same bits.
    if (threadIdx.x & offset) {
      ExpSum y = other;
      y.add<T>(x);
      x = y;
    } else {
      x.add<T>(other);
    }
  }
  return x;
}

// One block per token: its loss; and its logits (V) become the gradient of scale * loss, if wanted. Two sweeps over the
// row, of which the second finds the first `kept` elements in shared memory and the others mostly in the L2 cache:
// reads and writes V elements of device memory.
template <Gradient kGradient, class V, class T>
__global__ void __launch_bounds__(kThreads)
    token_loss_kernel(T* logits, double* losses, const int64_t* targets, int64_t vocab, int64_t kept, float scale) {
  extern __shared__ __align__(16) unsigned char shared[];
  T* const copy = reinterpret_cast<T*>(shared);
  T* row = logits + int64_t(blockIdx.x) * vocab;
  const int64_t target = targets[blockIdx.x];
  if (target < 0) {
    if constexpr (kGradient == Gradient::kYes) {
      V zero;
#pragma unroll
      for (int i = 0; i < V::kSize; ++i) zero.set(i, 0);
      for (int64_t v = int64_t(threadIdx.x) * V::kSize; v < vocab; v += kThreads * V::kSize) zero.store(row + v);
    }
    if (threadIdx.x == 0) losses[blockIdx.x] = 0;
    return;
  }

  ExpSum seen;
#pragma unroll 4
  for (int64_t v = int64_t(threadIdx.x) * V::kSize; v < vocab; v += kThreads * V::kSize) {
    const V x = V::load(row + v);
    if constexpr (kGradient == Gradient::kYes) {
      if (v < kept) x.store(copy + v);
    }
    float highest = x[0];
#pragma unroll
    for (int i = 1; i < V::kSize; ++i) highest = fmaxf(highest, x[i]);
    if (highest > seen.highest) {
      seen.sum *= exp_of<T>(seen.highest - highest);  // 0 * 0 at first
      seen.highest = highest;
    }
#pragma unroll
    for (int i = 0; i < V::kSize; ++i) seen.sum += exp_of<T>(x[i] - seen.highest);
  }
  __shared__ float warp_highest[kWarps], warp_sum[kWarps];
  seen = warp_exp_sum<T>(seen);
  if (threadIdx.x % kWarpSize == 0) {
    warp_highest[threadIdx.x / kWarpSize] = seen.highest;
    warp_sum[threadIdx.x / kWarpSize] = seen.sum;
  }
  const float target_logit = static_cast<float>(row[target]);
  __syncthreads();  // from here on the row may be overwritten
  static_assert(kWarps == kWarpSize);
  seen = warp_exp_sum<T>({warp_highest[threadIdx.x % kWarpSize], warp_sum[threadIdx.x % kWarpSize]});
  if (threadIdx.x == 0) losses[blockIdx.x] = double(seen.highest) - double(target_logit) + log(double(seen.sum));

  if constexpr (kGradient == Gradient::kYes) {
    const float factor = scale / seen.sum;
#pragma unroll 4
    for (int64_t v = int64_t(threadIdx.x) * V::kSize; v < vocab; v += kThreads * V::kSize) {
      V x = v < kept ? V::load(copy + v) : V::load(row + v);  // this thread's own copy
#pragma unroll
      for (int i = 0; i < V::kSize; ++i)
        x.set(i, factor * exp_of<T>(x[i] - seen.highest) - (v + i == target ? scale : 0));
      x.store(row + v);
    }
  }
}

// One block per row: each thread adds every 1024th loss, then the threads are added in pairs.
__global__ void __launch_bounds__(kThreads) sum_kernel(double* loss_sums, const double* losses, int64_t row_tokens) {
  __shared__ double shared[kThreads];
  const double* row = losses + blockIdx.x * row_tokens;
  double sum = 0;
  for (int64_t n = threadIdx.x; n < row_tokens; n += kThreads) sum += row[n];
  shared[threadIdx.x] = sum;
  __syncthreads();
  for (int width = kThreads / 2; width > 0; width /= 2) {
    if (threadIdx.x < width) shared[threadIdx.x] += shared[threadIdx.x + width];
    __syncthreads();
  }
  if (threadIdx.x == 0) loss_sums[blockIdx.x] = shared[0];
}

// Shared memory of a block for a row of logits, beside what the kernel itself needs; a multiple of 16.
int64_t kept_bytes(const Context& ctx) { return (ctx.gpu().most_shared_bytes - 1024) / 16 * 16; }

struct Gradients {
  Tensor hidden, weight;
  double scale;
};

template <Gradient kGradient>
void sweep(Context& ctx, Tensor loss_sums, Gradients d, const Tensor& hidden, const Tensor& weight,
           const Tensor& targets) {
  const int64_t N = hidden.dim(0), vocab = weight.dim(0);
  if (N == 0) return fill_zero(ctx, loss_sums);
  const int64_t fitting_tokens = kLogitsBytes / (vocab * size_of(hidden.dtype())) / kTokenUnit * kTokenUnit;
  const int64_t most_tokens = std::clamp(fitting_tokens, kTokenUnit, kLmHeadMostTokens);
  const int64_t num_chunks = ceil_div(N, most_tokens);
  const int64_t chunk_tokens = std::min(N, round_up(ceil_div(N, num_chunks), kTokenUnit));
  Scratch scratch(ctx);
  auto* losses = scratch.array<double>(N);
  Tensor logits = scratch.tensor({chunk_tokens, vocab}, hidden.dtype());
  if (ctx.counts_only()) return;  // products take none
  for (int64_t begin = 0; begin < N; begin += chunk_tokens) {
    const int64_t end = std::min(N, begin + chunk_tokens);
    const Tensor chunk = hidden.rows(begin, end), chunk_targets = targets.rows(begin, end);
    Tensor chunk_logits = logits.rows(0, end - begin);
    linear_forward(ctx, chunk_logits, chunk, weight);
    dispatch_activation("hidden", hidden, [&]<class T> {
      dispatch_width<T>(vocab, {chunk_logits.raw()}, [&]<class V> {
        const auto kernel = token_loss_kernel<kGradient, V, T>;
        const int64_t kept = kGradient == Gradient::kYes ? std::min(vocab, kept_bytes(ctx) / int64_t{sizeof(T)}) : 0;
        const auto shared_bytes = static_cast<int>(kept * int64_t{sizeof(T)});
        check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
                   "cudaFuncSetAttribute");
        kernel<<<end - begin, kThreads, shared_bytes, stream_of(ctx)>>>(pointer<T>(chunk_logits), losses + begin,
                                                                        pointer<int64_t>(chunk_targets), vocab, kept,
                                                                        static_cast<float>(d.scale));
        check_launch("lm_head_loss");
      });
    });
    if constexpr (kGradient == Gradient::kYes) {
      linear_backward_input(ctx, d.hidden.rows(begin, end), chunk_logits, weight);
      linear_backward_weight(ctx, d.weight, chunk_logits, chunk);
    }
  }
  const int64_t B = loss_sums.dim(0);
  sum_kernel<<<B, kThreads, 0, stream_of(ctx)>>>(pointer<double>(loss_sums), losses, N / B);
  check_launch("lm_head_loss sum");
}

}  // namespace

void lm_head_loss_forward(Context& ctx, Tensor loss_sums, const Tensor& hidden, const Tensor& weight,
                          const Tensor& targets) {
  sweep<Gradient::kNo>(ctx, loss_sums, {}, hidden, weight, targets);
}

void lm_head_loss_forward_backward(Context& ctx, Tensor loss_sums, Tensor d_hidden, Tensor d_weight,
                                   const Tensor& hidden, const Tensor& weight, const Tensor& targets, double scale) {
  sweep<Gradient::kYes>(ctx, loss_sums, {d_hidden, d_weight, scale}, hidden, weight, targets);
}

}  // namespace braid::cuda
