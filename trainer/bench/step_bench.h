#pragma once

#include <string>
#include <vector>

#include "kernels/core/context.h"
#include "kernels/core/profile.h"
#include "kernels/matmul_algorithms.h"
#include "parallel/process_mesh.h"
#include "trainer/config/config.h"

namespace braid {

struct StepBenchOptions {
  int64_t warmup_steps = 3;
  int64_t steps = 10;
  int64_t profiled_steps = 2;  // after the measured ones: events around every operator cost a little
  int64_t total_steps() const { return warmup_steps + steps + profiled_steps; }
};

// What a training step costs, on uniformly random tokens in documents as long as a row.
struct StepBenchResult {
  std::vector<double> step_ms;  // of every measured step: the slowest rank's
  double tokens_per_step = 0;   // of all ranks
  double model_flop_per_token = 0;
  // Of this rank: what was planned and, of it, for scratch; the scratch that was in use at one time.
  int64_t planned_bytes = 0, planned_scratch_bytes = 0, scratch_bytes = 0;
  int64_t device_used_bytes = 0;  // of the GPU's memory after the last step, with all that libraries took; 0 on a CPU
  double first_loss = 0, last_loss = 0;
  AlgorithmCounts products;  // that this rank computed
  // Of this rank in a mean profiled step, longest first.
  std::vector<OperatorTime> operators;
  double profiled_step_ms = 0;

  double median_ms() const;
  double tokens_per_s() const { return tokens_per_step / median_ms() * 1e3; }
};
StepBenchResult bench_step(Context& ctx, const ProcessMesh& mesh, const RunConfig& config,
                           const StepBenchOptions& options);

// Lines for people, or one JSON object.
std::string format_step_bench(const StepBenchResult& result, int num_ranks);
std::string step_bench_json(const StepBenchResult& result, int num_ranks);

}  // namespace braid
