#pragma once

#include <cstdio>
#include <string>

#include "parallel/process_mesh.h"
#include "trainer/config/config.h"

namespace braid {

enum class SelfCheck { kYes, kNo };

// What a command does before it takes memory for a model. Rank 0 writes to `log` on which GPU and with which
// implementation of every operator it will run, or on which CPU and with which products (null: nowhere). Called by
// every rank, and all come to the same verdict. Errors: ConfigError if an operator would be slow on a GPU without
// leave; EnvironmentError if a kernel is wrong; OutOfMemoryError if a CPU has none for what products need beside their
// operands.
void start_on_device(Context& ctx, const ProcessMesh& mesh, const RunConfig& config, SelfCheck self_check,
                     std::FILE* log);

// What this rank computes on, for a table of ranks: "NVIDIA H200", "AMD EPYC 9654, 8 threads".
std::string device_text(const Context& ctx);

}  // namespace braid
