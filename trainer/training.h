#pragma once

#include <string>

#include "kernels/core/context.h"
#include "parallel/process_mesh.h"
#include "trainer/config/config.h"
#include "trainer/device/start.h"
#include "trainer/metrics/console.h"

namespace braid {

struct ResumeFrom {
  bool resume = false;
  std::string checkpoint;  // a step folder; empty: the newest one of the run folder
};

// A whole run: data, model, steps, evaluation, metrics, checkpoints. Called by every rank; rank 0 owns the run folder.
// Returns kDone, or kStoppedOnRequest after a signal, with a complete checkpoint in either case.
ExitCode run_training(Context& ctx, const ProcessMesh& mesh, const RunConfig& config, const ResumeFrom& resume,
                      SelfCheck self_check, ConsoleStyle console = ConsoleStyle::kText);

// Throws CheckpointError naming the first keys that differ if a run with `config` may not go on from a checkpoint whose
// run had `stored`: every key that changes what is computed must be the same. Keys of layout, paths, saving, evaluation
// and logging, and the number of steps, are free.
void check_resume_config(const RunConfig& stored, const RunConfig& config, const std::string& checkpoint_path);

}  // namespace braid
