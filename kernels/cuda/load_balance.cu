#include "kernels/load_balance.h"

#include "kernels/cuda/common.cuh"

namespace braid::cuda {
namespace {

constexpr int kThreads = 256;

// One thread per expert.
__global__ void add_counts_kernel(int64_t* totals, const int64_t* counts, int64_t B, int64_t E) {
  const int64_t e = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (e >= E) return;
  int64_t sum = totals[e];
  for (int64_t b = 0; b < B; ++b) sum += counts[b * E + e];
  totals[e] = sum;
}

// Sum over the threads of a block, in a fixed order; every thread gets it.
template <class T>
__device__ T block_sum(T value, T* shared) {
  shared[threadIdx.x] = value;
  __syncthreads();
  for (int width = kThreads / 2; width > 0; width /= 2) {
    if (threadIdx.x < width) shared[threadIdx.x] += shared[threadIdx.x + width];
    __syncthreads();
  }
  const T sum = shared[0];
  __syncthreads();
  return sum;
}

// One block for everything: a few thousand numbers.
__global__ void load_balance_kernel(double* d_prob, double* sums, const int64_t* counts, const double* prob_sum,
                                    const double* z_sum, int64_t B, int64_t E, int64_t load_stride, double loss_weight,
                                    double per_token) {
  __shared__ double shared[kThreads];
  double loss = 0;
  for (int64_t b = 0; b < B; ++b) {
    const int64_t* load = counts + b * load_stride;
    double count = 0;  // exact below 2^53
    for (int64_t e = threadIdx.x; e < E; e += kThreads) count += double(load[e]);
    const double total = block_sum(count, shared);
    for (int64_t e = threadIdx.x; e < E; e += kThreads) {
      const double f = total > 0 ? double(load[e]) / total : 1.0 / double(E);
      const double weight = double(E) * f * per_token;
      d_prob[b * E + e] = loss_weight * weight;
      loss += weight * prob_sum[b * E + e];
    }
  }
  loss = block_sum(loss, shared);
  if (threadIdx.x != 0) return;
  double z_loss = 0;
  for (int64_t b = 0; b < B; ++b) z_loss += per_token * z_sum[b];
  sums[0] += loss;
  sums[1] += z_loss;
}

}  // namespace

void add_counts(Context& ctx, Tensor totals, const Tensor& counts) {
  const int64_t E = counts.dim(1);
  add_counts_kernel<<<ceil_div(E, kThreads), kThreads, 0, stream_of(ctx)>>>(pointer<int64_t>(totals),
                                                                            pointer<int64_t>(counts), counts.dim(0), E);
  check_launch("add_counts");
}

void load_balance(Context& ctx, Tensor d_prob, Tensor sums, const Tensor& counts, const RouterOutputs& router,
                  double loss_weight, double per_token) {
  const int64_t B = d_prob.dim(0), E = d_prob.dim(1);
  load_balance_kernel<<<1, kThreads, 0, stream_of(ctx)>>>(
      pointer<double>(d_prob), pointer<double>(sums), pointer<int64_t>(counts), pointer<double>(router.prob_sum),
      pointer<double>(router.z_sum), B, E, counts.dim(0) == 1 ? 0 : E, loss_weight, per_token);
  check_launch("load_balance");
}

}  // namespace braid::cuda
