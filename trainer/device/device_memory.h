#pragma once

#include <string>
#include <vector>

#include "kernels/core/memory.h"
#include "trainer/config/config.h"

namespace braid {

struct MemoryNeed {
  std::string what;
  int64_t bytes;
};

// Throws OutOfMemoryError with the table of what is needed if that is more than is free on `device`.
void check_gpu_memory(const std::vector<MemoryNeed>& needs, const GpuMemory& memory, const std::string& device);

// Bound on the scratch of a training step on a GPU: the most that the operators of one layer, of the head or of the MTP
// block hold at one time beside what is alive around them. max_rows: rows that a rank's experts may receive.
int64_t scratch_bound_bytes(const RunConfig& config, int64_t max_rows);

// What libraries and kernels take beside: code that is loaded when it first runs, plans of cuDNN, and channels of NCCL.
int64_t library_bytes(int num_ranks);

}  // namespace braid
