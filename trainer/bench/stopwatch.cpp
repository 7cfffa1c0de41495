#include "trainer/bench/stopwatch.h"

#include <algorithm>
#include <chrono>

#include "kernels/core/memory.h"

namespace braid {
namespace {

constexpr int64_t kHeadStartBytes = int64_t{2} << 30;
// Slow operators get fewer turns.
constexpr double kTurnsMs = 1000;
constexpr int kMinTurns = 7;

}  // namespace

Stopwatch::Stopwatch(const Context& ctx, Communicator& world, int max_turns) : world_(world), max_turns_(max_turns) {
  if (!ctx.on_cuda()) return;
  memory_ = allocate_memory(Device::kCuda, kHeadStartBytes);
  check<OutOfMemoryError>(memory_ != nullptr, "no GPU memory for a tensor of ", kHeadStartBytes, " bytes");
  head_start_ = Tensor(memory_.get(), DType::kU8, {kHeadStartBytes}, Device::kCuda);
}

double Stopwatch::median_ms(Context& ctx, const Body& body, Launch launch) {
  body(0);  // takes scratch, chooses algorithms
  ctx.synchronize();
  const auto start = std::chrono::steady_clock::now();
  body(1);
  ctx.synchronize();
  const double ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  // Of all ranks, so that all take the same number of turns: a collective waits for every rank.
  const double fitting = kTurnsMs / std::max(of_slowest_rank(ms), 1e-3);
  const int turns = static_cast<int>(std::clamp<double>(fitting, std::min(kMinTurns, max_turns_), max_turns_));
  world_.barrier(ctx);
  std::vector<double> times = turn_times_ms(ctx, turns, launch, head_start_, body);
  std::nth_element(times.begin(), times.begin() + turns / 2, times.end());
  return of_slowest_rank(times[static_cast<size_t>(turns) / 2]);
}

double Stopwatch::of_slowest_rank(double ms) {
  Context host = Context::cpu();
  world_.all_reduce(host, Tensor::of(&ms, {1}), ReduceOp::kMax);
  return ms;
}

}  // namespace braid
