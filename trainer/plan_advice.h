#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/core/device_info.h"
#include "trainer/config/config.h"

namespace braid {

// What makes a run need less memory.
struct PlanChange {
  std::vector<std::string> overrides;  // as on a command line: {"memory.recompute=moe", "memory.recompute_further=4"}
  int64_t num_ranks;
  std::string price;
  int64_t total_bytes = 0;  // with it
  bool fits = false;
};
struct PlanAdvice {
  std::vector<PlanChange> alone;      // each by itself
  std::vector<PlanChange> in_turn;    // each on top of those before, the cheaper first, until it fits
  std::vector<std::string> together;  // the overrides of all of those, each key once
};

// For a run that passes check_config_for_ranks and does not fit. Every change gives one that passes too and needs less;
// what can be had in part (GPUs, ranks that share experts or rows, layers that are made again) is asked for as far as
// need be.
PlanAdvice advise(const RunConfig& config, int64_t num_ranks, const GpuModel& gpu);

}  // namespace braid
