#pragma once

#include <string>

#include "kernels/core/device_info.h"
#include "trainer/config/config.h"
#include "trainer/step_memory.h"

namespace braid {

// Parameters by part, for the main model and with the MTP block. Active: what one token uses.
struct ParameterCounts {
  int64_t embedding = 0, head = 0, mixers = 0, norms = 0, routers = 0, routed_experts = 0, shared_experts = 0;
  int64_t main = 0, mtp = 0;                // totals without and of the MTP block
  int64_t active_main = 0, active_mtp = 0;  // per token, without embedding and head
  int64_t total() const { return main + mtp; }
};
ParameterCounts count_parameters(const ModelConfig& model, const MtpConfig& mtp);

// Bytes of the fullest of so many ranks, with nothing allocated; see count_memory. gpu: where it would run, no GPU need
// be there; ranks that share experts are then taken to be in one host, if they are at most kGpusPerHost. Null: a CPU.
MemoryEstimate estimate_memory(const RunConfig& config, int64_t num_ranks, const GpuModel* gpu = nullptr);
inline constexpr int64_t kGpusPerHost = 8, kMostRanks = 1 << 20;

// What memory.recompute auto would choose on that GPU; none for a CPU, whose memory nobody named.
Recomputation recompute_that_fits(const RunConfig& config, int64_t num_ranks, const GpuModel* gpu);

// The report of `braid plan`. Memory is left out if the config names no batch. With a GPU it ends with whether the run
// fits, and if not, with the settings that need less, what they cost and what is left of the lack.
std::string format_plan(const RunConfig& config, int64_t num_ranks, const GpuModel* gpu = nullptr);
// The same as one JSON object, on a line; memory in bytes.
std::string plan_json(const RunConfig& config, int64_t num_ranks, const GpuModel* gpu = nullptr);

}  // namespace braid
