#include "trainer/plan_advice.h"

#include <algorithm>
#include <cstdio>
#include <functional>
#include <optional>

#include "trainer/config/config_reader.h"
#include "trainer/plan.h"

namespace braid {
namespace {

struct PlannedRun {
  RunConfig config;
  int64_t num_ranks;

  PlannedRun with(const PlanChange& change) const {
    PlannedRun run{config, change.num_ranks};
    apply_overrides(run.config, change.overrides);
    return run;
  }
  bool is_legal() const {
    try {
      check_model_config(config);
      check_config_for_ranks(config, num_ranks);
      return true;
    } catch (const ConfigError&) {
      return false;
    }
  }
};

// What to change next, if it is not so already; whether the run may have it is asked elsewhere.
using Change = std::function<std::optional<PlanChange>(const PlannedRun&)>;

Change set(std::vector<std::string> overrides, std::string price, bool (*is_set)(const RunConfig&)) {
  return [=](const PlannedRun& run) -> std::optional<PlanChange> {
    if (is_set(run.config)) return std::nullopt;
    return PlanChange{overrides, run.num_ranks, price};
  };
}

PlanChange take_recomputation(const PlannedRun& run, const Recomputation& recompute) {
  char price[64] = "repeats passes over elements";
  if (const double again = repeated_percent(run.config, recompute); again > 0)
    std::snprintf(price, sizeof price, "repeats %.0f %% of the products of a step", again);
  std::vector<std::string> overrides = {concat("memory.recompute=", name_of_enum(recompute.policy))};
  if (recompute.further != run.config.memory.recompute_further)
    overrides.push_back(concat("memory.recompute_further=", recompute.further));
  return {overrides, run.num_ranks, price};
}

Change recompute(Recompute policy) {
  return [=](const PlannedRun& run) -> std::optional<PlanChange> {
    if (run.config.memory.recompute >= policy) return std::nullopt;
    return take_recomputation(run, policy);
  };
}

// Twice the ranks that share experts, where they are then so many.
Change share_experts(int64_t least, int64_t most, std::string price) {
  return [=](const PlannedRun& run) -> std::optional<PlanChange> {
    const int64_t expert = 2 * run.config.parallel.expert;
    if (expert < least || expert > most) return std::nullopt;
    return PlanChange{{concat("parallel.expert=", expert)}, run.num_ranks, price};
  };
}

PlanChange offload_tenths(const PlannedRun& run, int64_t tenths) {
  std::vector<std::string> overrides = {"memory.offload=optimizer"};
  if (tenths < 10) overrides.push_back(concat("memory.offload_share=0.", tenths));
  else if (run.config.memory.offload_share < 1) overrides.push_back("memory.offload_share=1");
  return {overrides, run.num_ranks, "state in host memory is copied both ways in every step"};
}

std::optional<PlanChange> offload_state(const PlannedRun& run) {
  const MemorySection& memory = run.config.memory;
  if (memory.offload == Offload::kOptimizer && memory.offload_share == 1) return std::nullopt;
  return offload_tenths(run, 10);
}

std::optional<PlanChange> share_rows(const PlannedRun& run) {
  return PlanChange{{concat("parallel.context=", 2 * run.config.parallel.context)},
                    run.num_ranks,
                    "ranks that share rows exchange keys, values and states"};
}

// Experts that all GPUs of a host share stay so; a batch without a row for every rank grows.
std::optional<PlanChange> take_more_gpus(const PlannedRun& run) {
  PlanChange change{{}, 2 * run.num_ranks, "more GPUs"};
  if (change.num_ranks > kMostRanks) return std::nullopt;
  if (run.config.parallel.expert == run.num_ranks && change.num_ranks <= kGpusPerHost) {
    change.overrides = {concat("parallel.expert=", change.num_ranks)};
    if (run.config.model.num_experts % change.num_ranks != 0) change.overrides.clear();
  }
  if (!run.with(change).is_legal())
    change.overrides.push_back(concat("train.global_batch_size=", 2 * run.config.train.global_batch_size));
  return change;
}

// In the order in which one would take them: each on top of those before is dearer than they are.
std::vector<Change> changes_by_price() {
  return {set({"parallel.max_rows_factor=1.25"},
              "a rank that is sent more than 1.25 times the mean of rows works through them in rounds",
              [](const RunConfig& c) {
                return c.parallel.expert == 1 || (c.parallel.max_rows_factor > 0 && c.parallel.max_rows_factor <= 1.25);
              }),
          recompute(Recompute::kElementwise),
          set({"optimizer.moment_dtype=bf16"}, "moments are rounded",
              [](const RunConfig& c) { return c.optimizer.moment_dtype != MomentDType::kFp32; }),
          set({"optimizer.gradient_dtype=bf16"},
              "gradients of experts are rounded, once for each micro-batch and their sum",
              [](const RunConfig& c) { return c.optimizer.gradient_dtype == GradientDType::kBf16; }),
          set({"optimizer.moment_dtype=int8"}, "moments of matrices are rounded to a byte each",
              [](const RunConfig& c) { return c.optimizer.moment_dtype == MomentDType::kInt8; }),
          share_experts(2, kGpusPerHost, "rows travel between the GPUs of a host"),
          recompute(Recompute::kMoe),
          set({"parallel.micro_batches_in_flight=1"}, "nothing is computed while rows travel",
              [](const RunConfig& c) { return c.parallel.micro_batches_in_flight == 1; }),
          offload_state,
          recompute(Recompute::kLayer),
          set({"train.micro_batch_size=1"}, "smaller products",
              [](const RunConfig& c) { return c.train.micro_batch_size == 1; }),
          share_rows,
          share_experts(2 * kGpusPerHost, kMostRanks, "rows travel between hosts"),
          take_more_gpus};
}

// What was changed before and is not again.
void keep_earlier(PlanChange& change, std::vector<std::string> earlier) {
  std::erase_if(earlier, [&](const std::string& before) {
    const std::string key = before.substr(0, before.find('=') + 1);
    return std::any_of(change.overrides.begin(), change.overrides.end(),
                       [&](const std::string& now) { return now.starts_with(key); });
  });
  change.overrides.insert(change.overrides.begin(), earlier.begin(), earlier.end());
}

class Adviser {
 public:
  explicit Adviser(const GpuModel& gpu) : gpu_(gpu) {}

  int64_t total_of(const PlannedRun& run) const { return estimate_memory(run.config, run.num_ranks, &gpu_).total(); }

  // Changes the run, as often as that is possible and worth something, until it fits. Nothing if it gains nothing.
  std::optional<PlanChange> take(const Change& change, PlannedRun& run, int64_t total) const {
    std::optional<PlanChange> taken;
    while (!fits(total)) {
      std::optional<PlanChange> next = change(run);
      if (!next) break;
      const PlannedRun changed = run.with(*next);
      if (!changed.is_legal()) break;
      next->total_bytes = total_of(changed);
      if (double(next->total_bytes) >= (taken ? kWorthMore : 1) * double(total)) break;
      next->fits = fits(total = next->total_bytes);
      const MemorySection &now = changed.config.memory, &before = run.config.memory;
      if (next->fits && now.recompute != before.recompute) next = fewest_layers(changed, run);
      if (next->fits && now.offload != before.offload) next = least_offloaded(run);
      run = run.with(*next);
      if (taken) keep_earlier(*next, taken->overrides);
      taken = next;
    }
    return taken;
  }

 private:
  static constexpr double kWorthMore = 0.99;  // of what it was before

  bool fits(int64_t total) const { return total <= gpu_.memory_bytes; }

  // Instead of a policy with which the run fits, the one before in as many layers as need be.
  PlanChange fewest_layers(const PlannedRun& fitting, const PlannedRun& before) const {
    const Recomputation least = recompute_that_fits(fitting.config, fitting.num_ranks, &gpu_);
    PlanChange change = take_recomputation(before, least);
    change.total_bytes = total_of(before.with(change));
    change.fits = true;
    return change;
  }

  // Instead of all state, with which the run fits.
  PlanChange least_offloaded(const PlannedRun& before) const {
    PlanChange change;
    for (int64_t tenths = 1; !change.fits; ++tenths) {
      change = offload_tenths(before, tenths);
      change.total_bytes = total_of(before.with(change));
      change.fits = fits(change.total_bytes);
    }
    return change;
  }

  const GpuModel& gpu_;
};

}  // namespace

PlanAdvice advise(const RunConfig& config, int64_t num_ranks, const GpuModel& gpu) {
  const Adviser adviser(gpu);
  const PlannedRun start{config, num_ranks};
  const int64_t total = adviser.total_of(start);
  PlanAdvice advice;
  for (const Change& change : changes_by_price()) {
    PlannedRun run = start;
    const auto taken = adviser.take(change, run, total);
    const auto is_taken = [&](const PlanChange& c) { return c.overrides == taken->overrides; };
    if (taken && std::none_of(advice.alone.begin(), advice.alone.end(), is_taken)) advice.alone.push_back(*taken);
  }
  PlannedRun run = start;
  for (const Change& change : changes_by_price()) {
    auto taken = adviser.take(change, run, advice.in_turn.empty() ? total : advice.in_turn.back().total_bytes);
    if (!taken) continue;
    advice.in_turn.push_back(*taken);
    keep_earlier(*taken, advice.together);
    advice.together = taken->overrides;
  }
  return advice;
}

}  // namespace braid
