#pragma once

#include <string>
#include <vector>

#include "kernels/core/implementation.h"
#include "trainer/config/config.h"

namespace braid {

struct OperatorImplementation {
  std::string name;  // one of cases::operator_names()
  Implementation how;
};
// Of every operator that a run with this config uses, on this device, for its sizes and precision.
std::vector<OperatorImplementation> operator_implementations(Context& ctx, const RunConfig& config);

// Throws ConfigError naming the operators, and why, if a run in bf16 would take a slow way that `allow_slow` does not
// name. In fp32, which is for tests, every way counts as allowed.
void check_nothing_slow(const std::vector<OperatorImplementation>& implementations, const RunConfig& config);

}  // namespace braid
