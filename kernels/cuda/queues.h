#pragma once

#include "kernels/cuda/gpu.h"

namespace braid::cuda {

// A place in a stream, for others to wait for: no clock.
cudaEvent_t open_event();
void record(Gpu& gpu, cudaEvent_t event);  // where the stream ends now
void hold(Gpu& gpu, cudaEvent_t event);    // until it is reached: what the stream is given from now on

// The same bytes, from host or device to host or device, in the order of the context's stream.
void enqueue_copy(Context& ctx, Tensor to, const Tensor& from);

}  // namespace braid::cuda
