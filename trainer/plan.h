#pragma once

#include <string>

#include "trainer/config/config.h"

namespace braid {

// Parameters by part, for the main model and with the MTP block. Active: what one token uses.
struct ParameterCounts {
  int64_t embedding = 0, head = 0, mixers = 0, norms = 0, routers = 0, routed_experts = 0, shared_experts = 0;
  int64_t main = 0, mtp = 0;                // totals without and of the MTP block
  int64_t active_main = 0, active_mtp = 0;  // per token, without embedding and head
  int64_t total() const { return main + mtp; }
};
ParameterCounts count_parameters(const ModelConfig& model, const MtpConfig& mtp);

// Bytes of the fullest rank, computed from the same plans that training commits; nothing is allocated.
struct MemoryEstimate {
  int64_t weights = 0, gradients = 0, optimizer = 0, activations = 0;
  int64_t total() const { return weights + gradients + optimizer + activations; }
};
MemoryEstimate estimate_memory(const RunConfig& config, int64_t num_ranks);

// The report of `braid plan`. Memory is left out if the config names no batch.
std::string format_plan(const RunConfig& config, int64_t num_ranks);

}  // namespace braid
