#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "trainer/metrics/line_file.h"

namespace braid {

// Tokens that each expert of each MoE layer got in one step, over the global batch.
struct ExpertLoads {
  int64_t step = 0;
  std::vector<std::string> layers;           // "layer_00", …, "mtp"
  std::vector<std::vector<int64_t>> counts;  // (layers, E)
};

// <run_dir>/expert_loads.jsonl: {"step": 10, "layer_00": [12, 0, …], …}, for heat maps over time. A run has about
// kLines of them however long it is. Rank 0 only.
class ExpertLoadsWriter {
 public:
  static constexpr int64_t kLines = 200;

  // Resume: lines of steps after `last_step` and a torn last line are cut.   Errors: IoError.
  ExpertLoadsWriter(const std::string& run_dir, int64_t last_step);

  // Is the step, of a run of run_steps, one of those that are written?
  static bool is_due(int64_t step, int64_t run_steps);
  // False if it failed; then nothing of it stays in the file.
  bool write(const ExpertLoads& loads);

 private:
  std::optional<LineFile> file_;
};

// All of them, in order of steps; none if there is no such file. A torn last line is skipped.   Errors: DataError.
std::vector<ExpertLoads> read_expert_loads(const std::string& run_dir);

}  // namespace braid
