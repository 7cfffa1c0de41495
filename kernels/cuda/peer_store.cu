#include "kernels/cuda/peer_store.h"

#include "kernels/cuda/gpu.h"

namespace braid::cuda {
namespace {

constexpr int kThreads = 1024;

// One block per peer. Stores to a peer are not waited for, so one
// multiprocessor fills its link: 1.3 MB take some 20 us.
__global__ void __launch_bounds__(kThreads) store_kernel(const PeerStores stores, int64_t vectors, uint64_t number) {
  const PeerStores::Store& s = stores.store[blockIdx.x];
  const auto* from = static_cast<const uint4*>(s.from);
  auto* to = static_cast<uint4*>(s.to);
  for (int64_t i = threadIdx.x; i < vectors; i += kThreads) to[i] = from[i];
  __threadfence_system();  // every thread's stores are there before the number is
  __syncthreads();
  if (threadIdx.x == 0) *static_cast<volatile uint64_t*>(s.number) = number;
}

}  // namespace

void store_to_peers(cudaStream_t stream, const PeerStores& stores, int64_t bytes, uint64_t number) {
  if (stores.count == 0) return;
  store_kernel<<<stores.count, kThreads, 0, stream>>>(stores, bytes / static_cast<int64_t>(sizeof(uint4)), number);
  check_launch("store_to_peers");
}

}  // namespace braid::cuda
