#pragma once

#include <memory>
#include <string>

#include "kernels/core/context.h"
#include "parallel/process_mesh.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/config.h"

namespace braid {

// The communicator of a command that computes: MPI's world under a launcher, one rank otherwise. MPI starts with the
// first call and ends with the process.
std::unique_ptr<Communicator> open_world();
// Ends the process after an error, and the whole job with it if there are other ranks. Never returns.
[[noreturn]] void end_process(int exit_code);
int world_rank();  // 0 without a launcher

// Chooses the OpenMP thread count where the user has not: the cores of this process, shared with the ranks beside it.
void use_default_threads();

// What the build and the machine can run of `device` and `precision`.   Errors: EnvironmentError, ConfigError.
void check_device(const RunConfig& config);

struct TrainedModel {
  CheckpointReader reader;
  RunConfig config;  // of its run
};
TrainedModel open_trained_model(const std::string& path);

}  // namespace braid
