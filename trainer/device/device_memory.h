#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/core/memory.h"

namespace braid {

// Bytes of a rank's device during a run, by what they are for. Counted by count_memory.
struct MemoryEstimate {
  int64_t weights = 0, gradients = 0, optimizer = 0, activations = 0;
  std::optional<int64_t> scratch;  // unknown for a GPU to a build without CUDA
  int64_t second_scratch = 0;      // of it, that of the context's second
  int64_t windows = 0;             // rows that other ranks' GPUs write
  int64_t saving = 0;              // the copy that is written while a CPU trains on
  int64_t libraries = 0;           // of a GPU: driver, loaded code, cuBLAS, cuDNN, NCCL
  int64_t saving_on_host = 0;      // beside a GPU, no part of the total: a copy, or what a save passes through
  int64_t offloaded = 0;           // so too: optimizer state, pinned

  struct Row {
    const char* what;
    int64_t bytes;
  };
  std::vector<Row> rows() const;  // those that are more than 0
  int64_t total() const;
};

std::string gib_text(int64_t bytes);

// Throws OutOfMemoryError with the table of what is needed if that is more than is free on `device`.
void check_gpu_memory(const MemoryEstimate& needs, const GpuMemory& memory, const std::string& device);

// The same for host memory, if state is offloaded to it, where so many ranks share a host.
void check_host_memory(const MemoryEstimate& needs, int64_t ranks_of_host);

// Of this host, as the kernel estimates what programs can still have; 0 where it does not say.
int64_t available_host_bytes();

// What libraries and kernels take beside: code that is loaded when it first runs, plans of cuDNN, and channels of NCCL
// for so many groups of several ranks. Measured on H100s and H200s, whatever the run and the number of ranks: 660 to
// 676 MiB without NCCL, 2.0 GiB with two groups, 2.8 with three (docs/gpu.md).
int64_t library_bytes(int num_groups);

}  // namespace braid
