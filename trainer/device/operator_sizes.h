#pragma once

#include "kernels/cases/operator_case.h"
#include "trainer/config/config.h"

namespace braid {

// What the operators of a model depend on; batches are left out.
cases::Sizes operator_sizes(const ModelConfig& model, DType activation);
// What those of a run do, with a micro-batch, the experts of one rank, and only the layers that the run has.
cases::Sizes operator_sizes(const RunConfig& config);

}  // namespace braid
