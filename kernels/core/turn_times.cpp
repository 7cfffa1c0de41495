#include "kernels/core/turn_times.h"

#include <chrono>

#include "kernels/build_config.h"

namespace braid {

namespace cuda {
decltype(braid::turn_times_ms) turn_times_ms;
}

std::vector<double> turn_times_ms(Context& ctx, int num_turns, Launch launch, Tensor head_start,
                                  const std::function<void(int turn)>& body) {
  if constexpr (kWithCuda) {
    if (ctx.on_cuda()) return cuda::turn_times_ms(ctx, num_turns, launch, head_start, body);
  }
  using Clock = std::chrono::steady_clock;
  std::vector<double> times;
  for (int turn = 0; turn < num_turns; ++turn) {
    const auto start = Clock::now();
    body(turn);
    times.push_back(std::chrono::duration<double, std::milli>(Clock::now() - start).count());
  }
  return times;
}

}  // namespace braid
