#pragma once

#include <functional>
#include <vector>

#include "kernels/core/context.h"
#include "kernels/core/tensor.h"

namespace braid {

// How a turn reaches a GPU: recorded in advance as a CUDA graph, as a training step will be, or call by call.
enum class Launch { kGraph, kDirect };

// Milliseconds that each of `num_turns` calls body(0), body(1), ... takes on the device of ctx; on a GPU between
// events, on the CPU by the clock. Everything that is done once, at the first use of an operator, must have been done
// before: a graph cannot record it.
//   head_start  GPU memory that is overwritten to keep the GPU busy while the host enqueues all turns; not used on the
//               CPU
std::vector<double> turn_times_ms(Context& ctx, int num_turns, Launch launch, Tensor head_start,
                                  const std::function<void(int turn)>& body);

}  // namespace braid
