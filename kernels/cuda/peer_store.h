#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace braid::cuda {

inline constexpr int kMostPeers = 64;

// What one GPU of a host writes into the memory of others.
struct PeerStores {
  struct Store {
    const void* from;
    void* to;
    uint64_t* number;  // on the same GPU as `to`
  };
  Store store[kMostPeers];
  int count = 0;
};

// Copies `bytes` to every peer and, behind them, writes `number`: by a kernel with one block per peer, for small
// messages that somebody waits for. The copy engines would let them stand behind large ones, also those of another
// stream. bytes and all addresses are multiples of 16, those of numbers of 8.
void store_to_peers(cudaStream_t stream, const PeerStores& stores, int64_t bytes, uint64_t number);

}  // namespace braid::cuda
