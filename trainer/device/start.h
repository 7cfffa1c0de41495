#pragma once

#include <cstdio>

#include "parallel/process_mesh.h"
#include "trainer/config/config.h"

namespace braid {

enum class SelfCheck { kYes, kNo };

// What a command does on a GPU before it takes memory for a model; nothing on a CPU. Rank 0 writes to `log` which GPU
// and which implementation of every operator will run. Called by every rank, and all come to the same verdict.
// Errors: ConfigError if an operator would be slow without leave; EnvironmentError if a kernel is wrong.
void start_on_device(Context& ctx, const ProcessMesh& mesh, const RunConfig& config, SelfCheck self_check,
                     std::FILE* log);

}  // namespace braid
