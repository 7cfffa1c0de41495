#pragma once

#include <memory>
#include <string>

#include "data/tokenizer/tokenizer.h"
#include "kernels/core/context.h"
#include "parallel/process_mesh.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/config/config.h"
#include "trainer/training_state.h"

namespace braid {

// Where a command computes. The communicator is MPI's world under a launcher, NCCL's on GPUs, one rank otherwise.
struct Machine {
  Context ctx;
  std::unique_ptr<Communicator> world;
};
// MPI's world under a launcher, one rank otherwise. Ranks that do not run the same program are refused.   Errors:
// ConfigError; EnvironmentError; CommunicationError.
std::unique_ptr<Communicator> open_world();
// `device: auto` takes a GPU if every rank has one and the precision runs there. MPI starts with the first call and
// ends with the process; a machine ends before it. Errors: EnvironmentError, ConfigError for what the build or the
// machine cannot run; CommunicationError.
std::unique_ptr<Machine> open_machine(const RunConfig& config, std::unique_ptr<Communicator> world = open_world());
// Ends the process after an error, and the whole job with it if there are other ranks. Never returns.
[[noreturn]] void end_process(int exit_code);
int world_rank();  // 0 without a launcher

// Chooses the OpenMP thread count where the user has not, or what is set is no count: the cores of this process, shared
// with the ranks beside it.   Errors: EnvironmentError if the user's is out of reason.
void use_default_threads();

struct TrainedModel {
  CheckpointReader reader;
  RunConfig config;  // of its run
};
TrainedModel open_trained_model(const std::string& path);

// A trained model that reads a text piece by piece, and the tokenizer of its run: on the CPU, which serves best there,
// in fp32 if it was trained in bf16, without its MTP block.   Errors: DataError if the tokenizer has more ids than it.
struct TextModel {
  explicit TextModel(TrainedModel trained);
  TrainedModel trained;
  Context ctx = Context::cpu();
  ProcessMesh mesh;
  InferenceState state;
  std::unique_ptr<Tokenizer> tokenizer;
};

}  // namespace braid
