#pragma once

#include <functional>
#include <string>

#include "kernels/core/context.h"
#include "parallel/process_mesh.h"
#include "trainer/config/config.h"
#include "trainer/device/device_memory.h"

namespace braid {

// By running a step, and an evaluation, in a context that counts only: no memory is taken and nothing is computed.
// where: the device, or a counter for one. Counted is what takes most: documents of a whole row and, for what an
// operator keeps per document or chunk, of one token, and as many expert rows as
// may arrive. `mesh` may be a planned one.
// Errors: ConfigError for a model whose sizes an operator refuses.
MemoryEstimate count_memory(const RunConfig& config, const ProcessMesh& mesh, const Context& where);

// The same without scratch, windows and libraries: where the device's operators are not part of this build.
MemoryEstimate memory_without_scratch(const RunConfig& config, const ProcessMesh& mesh, Device device);

// The least that is made again with which the whole of it, as total_of says, takes at most available_bytes: the first
// policy that does, and instead of it the one before with the fewest layers that go further. The last if none does.
Recomputation recomputation_that_fits(const RunConfig& config, int64_t available_bytes,
                                      const std::function<int64_t(const RunConfig&)>& total_of);
// The config with memory.recompute, if it is auto, replaced by that. The same on every rank. `said`: what was chosen
// and what it costs; empty if it was not auto.
RunConfig with_recompute_that_fits(const RunConfig& config, const ProcessMesh& mesh, Context& ctx,
                                   int64_t available_bytes, std::string& said);
// What the rank can have of its device: what is free on a GPU, its share of what is free in the machine's memory else.
int64_t available_memory(const Context& ctx, const ProcessMesh& mesh);

// Of the products of a step, what backward makes again beside them.
double repeated_percent(const RunConfig& config, const Recomputation& recompute);
// "elementwise: 41.234 GiB, repeats 0.0 % of a step's products"
std::string describe_recompute(const RunConfig& config, const Recomputation& recompute, int64_t total_bytes);

// The config with this in place of its own.
RunConfig with_recomputation(const RunConfig& config, const Recomputation& recomputation);

}  // namespace braid
