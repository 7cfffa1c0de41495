#pragma once

#include <functional>
#include <memory>

#include "kernels/core/context.h"
#include "kernels/core/turn_times.h"
#include "parallel/communicator.h"

namespace braid {

// Times of what runs on all ranks at once.
class Stopwatch {
 public:
  Stopwatch(const Context& ctx, Communicator& world, int max_turns);

  // The median of up to max_turns turns of `body`, which may enqueue several kernels on ctx; of the slowest rank.
  using Body = std::function<void(int turn)>;
  double median_ms(Context& ctx, const Body& body, Launch launch);

 private:
  double of_slowest_rank(double ms);

  Communicator& world_;
  int max_turns_;
  std::shared_ptr<std::byte> memory_;
  Tensor head_start_;  // keeps a GPU busy until all turns are enqueued
};

}  // namespace braid
