#pragma once

#include <array>
#include <string>
#include <vector>

#include "kernels/core/context.h"
#include "parallel/process_mesh.h"
#include "trainer/config/config.h"
#include "trainer/device/start.h"
#include "trainer/metrics/console.h"

namespace braid {

// What a start does with a run folder that holds something, and with one that does not.
enum class ResumeMode {
  kNo,      // a folder that holds a run is refused
  kNewest,  // goes on from the newest checkpoint; from the beginning if the run ended before its first
  kAuto,    // as kNewest, and starts where there is nothing
  kStrict,  // the newest checkpoint or none
};
template <>
struct EnumNames<ResumeMode> {
  static constexpr std::array kNames = {"no", "newest", "auto", "strict"};
};

struct ResumeFrom {
  ResumeMode mode = ResumeMode::kNo;
  std::string checkpoint;              // a step folder; empty: the newest one of the run folder
  std::vector<std::string> overrides;  // keys that differ from the checkpoint's on purpose; see ResumeRules
  bool resumes() const { return mode != ResumeMode::kNo; }
};

// A whole run: data, model, steps, evaluation, metrics, checkpoints. Called by every rank; rank 0 owns the run folder.
// Returns kDone, or after a request to stop kStoppedOnRequest, kStoppedWithWeights where weights alone are saved; with
// a complete checkpoint in any case.
ExitCode run_training(Context& ctx, const ProcessMesh& mesh, const RunConfig& config, const ResumeFrom& resume,
                      SelfCheck self_check, ConsoleStyle console = ConsoleStyle::kText);

}  // namespace braid
