#include "trainer/bench/step_bench.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "kernels/core/memory.h"
#include "kernels/core/philox.h"
#include "model/model_flop.h"
#include "trainer/train_step.h"
#include "trainer/training_state.h"

namespace braid {
namespace {

using Clock = std::chrono::steady_clock;

// A micro-batch of random tokens, every row one document, every next token a target.
Batch random_batch(const RunConfig& config, uint64_t stream) {
  const int64_t B = config.train.micro_batch_size, T = config.train.seq_length, V = config.model.vocab_size;
  Batch batch{B, T, {}, {}, Segments::whole_rows(B, T)};
  for (int64_t n = 0; n < B * T; ++n)
    batch.tokens.push_back(philox(static_cast<uint64_t>(config.train.seed), stream, static_cast<uint64_t>(n))[0] % V);
  batch.targets.assign(batch.tokens.begin() + 1, batch.tokens.end());
  batch.targets.push_back(-1);
  for (int64_t row = 0; row < B; ++row) batch.targets[(row + 1) * T - 1] = -1;
  return batch;
}

StepBatches random_step(const RunConfig& config, const ProcessMesh& mesh, int64_t step) {
  StepBatches batches;
  batches.step = step;
  const int64_t ranks = mesh.num_data_ranks();
  const int64_t micro_batches = config.train.global_batch_size / (config.train.micro_batch_size * ranks);
  for (int64_t i = 0; i < micro_batches; ++i)
    batches.add(random_batch(config, static_cast<uint64_t>((step * ranks + mesh.data_rank()) * micro_batches + i)),
                mesh.share());
  return batches;
}

// A line per operator, and what of the step none of them accounts for: the host, and gaps between kernels.
std::string format_operators(const StepBenchResult& r) {
  if (r.operators.empty()) return "";
  std::string text = "operators of a step, timed one by one:\n";
  double sum = 0;
  auto line = [&](const std::string& name, const std::string& calls, double ms) {
    char row[128];
    std::snprintf(row, sizeof row, "  %-32s %6s %9.3f ms %5.1f %%\n", name.c_str(), calls.c_str(), ms,
                  ms / r.profiled_step_ms * 100);
    text += row;
  };
  for (const OperatorTime& time : r.operators) {
    line(time.name, std::to_string(time.calls), time.ms);
    sum += time.ms;
  }
  line("between operators", "", r.profiled_step_ms - sum);
  return text;
}

}  // namespace

double StepBenchResult::median_ms() const {
  std::vector<double> sorted = step_ms;
  std::sort(sorted.begin(), sorted.end());
  return sorted[sorted.size() / 2];
}

StepBenchResult bench_step(Context& ctx, const ProcessMesh& mesh, const RunConfig& config,
                           const StepBenchOptions& options) {
  TrainingState state(config, mesh);
  state.allocate(ctx);
  state.initialize(ctx);
  StepBenchResult result;
  result.planned_bytes = state.needs().total();
  result.planned_scratch_bytes = state.needs().scratch.value_or(0);
  result.model_flop_per_token = training_flop_per_token(config.model, config.mtp, config.train.seq_length);
  int64_t step = 0;
  auto timed_step_ms = [&] {
    const StepBatches batches = random_step(config, mesh, ++step);
    ctx.synchronize();
    mesh.world().barrier(ctx);
    const auto start = Clock::now();
    const StepResult r = train_step(ctx, state, batches, mesh, config, step);
    check<NumericsError>(r.problem.empty(), r.problem, "; no update was applied");
    ctx.synchronize();
    int64_t nanoseconds = std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start).count();
    mesh.world().all_reduce(ctx, Tensor::of(&nanoseconds, {1}), ReduceOp::kMax);
    if (step == 1) result.first_loss = r.loss_lm;
    result.last_loss = r.loss_lm;
    result.tokens_per_step = double(r.tokens);
    return double(nanoseconds) * 1e-6;
  };
  for (int64_t i = 0; i < options.warmup_steps; ++i) timed_step_ms();
  for (int64_t i = 0; i < options.steps; ++i) result.step_ms.push_back(timed_step_ms());
  if (options.profiled_steps > 0) {
    const auto steps = double(options.profiled_steps);
    Profile profile(ctx);
    for (int64_t i = 0; i < options.profiled_steps; ++i) result.profiled_step_ms += timed_step_ms() / steps;
    result.operators = profile.times();
    for (OperatorTime& time : result.operators) {
      time.calls /= options.profiled_steps;
      time.ms /= steps;
    }
  }
  result.products = matmul_algorithm_counts(ctx);
  result.scratch_bytes = ctx.scratch_peak_bytes();
  if (ctx.on_cuda()) {
    const GpuMemory memory = gpu_memory();  // nothing is given back during a run, so this is the most that was taken
    result.device_used_bytes = memory.total_bytes - memory.free_bytes;
  }
  return result;
}

std::string format_step_bench(const StepBenchResult& r, int num_ranks) {
  constexpr double kGiB = int64_t{1} << 30;
  std::string in_use;
  if (r.device_used_bytes > 0) {
    char peak[64];
    std::snprintf(peak, sizeof peak, "; in use on the GPU %.2f GiB", double(r.device_used_bytes) / kGiB);
    in_use = peak;
  }
  char text[1024];
  const auto [least, most] = std::minmax_element(r.step_ms.begin(), r.step_ms.end());
  std::snprintf(text, sizeof text,
                "step %.1f ms (median of %zu; %.1f to %.1f), %.0f tokens/s, %.0f per rank\n"
                "%.3f model GFLOP per token, %.1f model TFLOP/s per rank\n"
                "memory per rank: planned %.3f GiB, of it scratch %.3f GiB; used %.3f GiB, of it scratch %.3f GiB%s\n"
                "loss %.4f in the first step, %.4f in the last\n",
                r.median_ms(), r.step_ms.size(), *least, *most, r.tokens_per_s(), r.tokens_per_s() / num_ranks,
                r.model_flop_per_token * 1e-9, r.tokens_per_s() / num_ranks * r.model_flop_per_token * 1e-12,
                double(r.planned_bytes) / kGiB, double(r.planned_scratch_bytes) / kGiB,
                double(r.planned_bytes - r.planned_scratch_bytes + r.scratch_bytes) / kGiB,
                double(r.scratch_bytes) / kGiB, in_use.c_str(), r.first_loss, r.last_loss);
  std::string products;
  if (r.products.stored + r.products.proposed > 0)
    products = concat("products by stored algorithms: ", r.products.stored, " of ",
                      r.products.stored + r.products.proposed, "\n");
  return text + products + format_operators(r);
}

std::string step_bench_json(const StepBenchResult& r, int num_ranks) {
  nlohmann::ordered_json json = {
      {"step_ms", r.median_ms()},
      {"times_ms", r.step_ms},
      {"tokens_per_s", r.tokens_per_s()},
      {"ranks", num_ranks},
      {"model_gflop_per_token", r.model_flop_per_token * 1e-9},
      {"model_tflops_per_rank", r.tokens_per_s() / num_ranks * r.model_flop_per_token * 1e-12},
      {"planned_bytes", r.planned_bytes},
      {"planned_scratch_bytes", r.planned_scratch_bytes},
      {"scratch_bytes", r.scratch_bytes},
      {"device_used_bytes", r.device_used_bytes},
      {"first_loss", r.first_loss},
      {"last_loss", r.last_loss},
      {"stored_algorithms", r.products.stored},
      {"proposed_algorithms", r.products.proposed},
      {"profiled_step_ms", r.profiled_step_ms},
      {"operators", nlohmann::ordered_json::array()},
  };
  for (const OperatorTime& time : r.operators)
    json["operators"].push_back({{"name", time.name}, {"calls", time.calls}, {"ms", time.ms}});
  return json.dump();
}

}  // namespace braid
