#include "trainer/cli/session.h"

#include <omp.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "kernels/build_config.h"
#include "kernels/core/process_info.h"
#include "parallel/mpi_session.h"
#include "parallel/nccl_communicator.h"
#include "parallel/progress.h"
#include "trainer/checkpoint/checkpoint_folder.h"
#include "trainer/config/config_reader.h"
#include "trainer/run/agreement.h"
#include "trainer/run/start_watch.h"
#include "trainer/run_tokenizer.h"

namespace braid {
namespace {

MpiSession* mpi_session = nullptr;

MpiSession& start_mpi() {
  static int argc = 0;
  static char** argv = nullptr;
  static MpiSession session(argc, argv);
  mpi_session = &session;
  return session;
}

// Does every rank see a GPU? An error if only some do.
bool every_rank_has_gpu(Communicator& world) {
  Context cpu = Context::cpu();
  std::vector<int64_t> gpus(static_cast<size_t>(world.size()));
  gpus[world.rank()] = Context::num_gpus();
  Tensor all = Tensor::of(gpus.data(), {world.size()});
  world.all_gather(cpu, all, all.rows(world.rank(), world.rank() + 1));
  for (size_t rank = 1; rank < gpus.size(); ++rank)
    check<EnvironmentError>((gpus[rank] > 0) == (gpus[0] > 0), "rank ", gpus[rank] > 0 ? 0 : rank,
                            " sees no GPU, but rank ", gpus[rank] > 0 ? rank : 0, " does");
  return gpus[0] > 0;
}

bool use_gpu(const RunConfig& config, Communicator& world) {
  const bool asked = config.device == DeviceChoice::kCuda;
  check<EnvironmentError>(!asked || kWithCuda,
                          "device: cuda was asked for, but this build of braid has no CUDA operators; use device: cpu");
  check<ConfigError>(!asked || config.precision != Precision::kFp64, "precision: fp64 runs on the CPU only");
  const bool possible = config.device != DeviceChoice::kCpu && config.precision != Precision::kFp64;
  const bool chosen = possible && every_rank_has_gpu(world);
  check<EnvironmentError>(!asked || chosen,
                          "device: cuda was asked for, but no GPU can be used: ", Context::why_no_gpu());
  check<ConfigError>(chosen || config.precision != Precision::kBf16,
                     "precision: bf16 needs a GPU; the CPU has fp32 and fp64");
  check<ConfigError>(chosen || config.optimizer.moment_dtype != MomentDType::kBf16,
                     "optimizer.moment_dtype: bf16 needs a GPU; the CPU has fp32");
  return chosen;
}

}  // namespace

std::unique_ptr<Communicator> open_world() {
  if (!MpiSession::launched_by_mpi()) return make_local_communicator();
  std::unique_ptr<Communicator> world = with_progress(start_mpi().world());
  Context cpu = Context::cpu();
  check_agreement(cpu, *world, program_facts(MpiSession::library()));
  if (world->size() == 1) return make_local_communicator();  // MPI would be handed a GPU's memory
  return world;
}

std::unique_ptr<Machine> open_machine(const RunConfig& config, std::unique_ptr<Communicator> world) {
  auto machine = std::make_unique<Machine>(Machine{Context::cpu(), std::move(world)});
  if (!use_gpu(config, *machine->world)) return machine;
  const int local_rank = mpi_session ? mpi_session->local_rank() : 0;
  machine->ctx = Context::gpu(local_rank % Context::num_gpus());
  if constexpr (kWithCuda) {
    if (machine->world->size() > 1)
      machine->world = with_progress(make_nccl_communicator(machine->ctx, std::move(machine->world)));
  }
  return machine;
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

namespace {

// Ranks of this host that have the cores of this one: one where the launcher gives each its own, those of a socket, or
// all, also where a container or taskset gives all of them but a few.
int ranks_on_these_cores(int ranks) {
  const std::vector<Sibling> all = siblings();
  if (std::ssize(all) != ranks)  // a shell is between a rank and the launcher
    return allowed_cores() < static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)) ? 1 : ranks;
  const auto sharing =
      std::count_if(all.begin(), all.end(), [](const Sibling& rank) { return has_same_cores(rank.pid); });
  return std::max(1, static_cast<int>(sharing));
}

}  // namespace

void use_default_threads() {
  const char* asked = std::getenv("OMP_NUM_THREADS");
  if (asked && std::atoi(asked) > 0) {
    // OpenMP keeps what it needs for so many on the stack, and ends the program without a word where that is too small.
    const int most = std::max(1024, allowed_cores());
    check<EnvironmentError>(omp_get_max_threads() <= most, "OMP_NUM_THREADS is ", asked, ", more than ", most,
                            " threads a process; leave it unset, or set it to cores / ranks of a host");
    return;
  }
  const char* local_size = std::getenv("OMPI_COMM_WORLD_LOCAL_SIZE");
  const int ranks = local_size ? std::max(1, std::atoi(local_size)) : 1;
  const int sharing = ranks > 1 ? ranks_on_these_cores(ranks) : 1;
  omp_set_num_threads(std::max(1, std::min(allowed_cores() / sharing, quota_cores() / ranks)));
}

TrainedModel open_trained_model(const std::string& path) {
  CheckpointReader reader = open_checkpoint(path);
  RunConfig config = read_config_text(reader.info().config_yaml, reader.path());
  // Its run may have been moved since.
  if (const std::string run = run_folder_of(reader.path()); !run.empty()) config.run.dir = run;
  return {std::move(reader), std::move(config)};
}

namespace {

TrainedModel for_text(TrainedModel trained) {
  RunConfig& config = trained.config;
  if (config.precision == Precision::kBf16) config.precision = Precision::kFp32;
  config.mtp.depth = 0;
  use_default_threads();
  return trained;
}

}  // namespace

TextModel::TextModel(TrainedModel model)
    : trained(for_text(std::move(model))),
      mesh(make_local_communicator(), 1, trained.config.model.num_experts),
      state(ctx, trained.config, mesh, 1, 1),
      tokenizer(run_tokenizer(trained.reader.path())) {
  const int64_t vocab_size = trained.config.model.vocab_size;
  check<DataError>(tokenizer->vocab_size() <= vocab_size, "the run's tokenizer has ", tokenizer->vocab_size(),
                   " ids, more than model.vocab_size ", vocab_size);
  state.load(ctx, trained.reader);
}

}  // namespace braid
