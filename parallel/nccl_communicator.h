#pragma once

#include <memory>

#include "parallel/communicator.h"

namespace braid {

// The ranks of `host`, one GPU each: tensors in GPU memory travel through NCCL, on the stream of the context they are
// called with, those in host memory through `host`. Sums on GPUs are taken in the order of NCCL's algorithm, which
// depends on the ranks and the size of the tensor only, so a repeated call has the same bits.
// Errors of NCCL, also asynchronous ones, for which Context::synchronize looks while it waits, end the process where
// they are noticed: by std::terminate, with the CommunicationError as the current exception, and without a destructor.
// NVLink multicast stays off unless the environment says NCCL_NVLS_ENABLE=1.
// Called by every rank of `host`, with a context on its GPU, which outlives the communicator.
// Errors: EnvironmentError naming both ranks if two share a GPU.
std::unique_ptr<Communicator> make_nccl_communicator(Context& ctx, std::unique_ptr<Communicator> host);

}  // namespace braid
