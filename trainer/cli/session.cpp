#include "trainer/cli/session.h"

#include <omp.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "kernels/build_config.h"
#include "parallel/mpi_session.h"
#include "trainer/config_reader.h"

namespace braid {
namespace {

MpiSession* mpi_session = nullptr;

}  // namespace

std::unique_ptr<Communicator> open_world() {
  if (!MpiSession::launched_by_mpi()) return make_local_communicator();
  static int argc = 0;
  static char** argv = nullptr;
  static MpiSession session(argc, argv);
  mpi_session = &session;
  return session.world();
}

void end_process(int exit_code) {
  if (mpi_session) MpiSession::abort(exit_code);
  std::_Exit(exit_code);
}

int world_rank() {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"})
    if (const char* value = std::getenv(name)) return std::atoi(value);
  return 0;
}

void use_default_threads() {
  if (std::getenv("OMP_NUM_THREADS")) return;
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  const int cores = sched_getaffinity(0, sizeof allowed, &allowed) == 0 ? CPU_COUNT(&allowed) : omp_get_num_procs();
  const bool bound_by_launcher = cores < static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  const char* local_size = std::getenv("OMPI_COMM_WORLD_LOCAL_SIZE");
  const int ranks = local_size ? std::max(1, std::atoi(local_size)) : 1;
  omp_set_num_threads(std::max(1, bound_by_launcher ? cores : cores / ranks));
}

void check_device(const RunConfig& config) {
  check<EnvironmentError>(config.device != DeviceChoice::kCuda || kWithCuda,
                          "device: cuda was asked for, but this build of braid has no CUDA operators; use device: cpu");
  check<ConfigError>(config.precision != Precision::kBf16, "precision: bf16 needs a GPU; the CPU has fp32 and fp64");
}

TrainedModel open_trained_model(const std::string& path) {
  CheckpointReader reader = open_checkpoint(path);
  RunConfig config = read_config_text(reader.info().config_yaml, reader.path());
  return {std::move(reader), std::move(config)};
}

}  // namespace braid
