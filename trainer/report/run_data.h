#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "trainer/config/config.h"
#include "trainer/metrics/expert_loads.h"
#include "trainer/metrics/run_events.h"

namespace braid {

// One training line of a run.
struct TrainPoint {
  int64_t step = 0, tokens = 0;
  double seconds = 0;  // of training until then: the sum of perf/step_ms
  double loss = 0;     // train/loss_lm
  double grad_norm = 0, lr = 0, tokens_per_s = 0;
};

struct HeldOutPoint {
  int64_t step = 0, tokens = 0;
  double seconds = 0, loss = 0;
};

// What a run read of one source of its data.
struct SourceData {
  double epochs = 0;          // how often, to its end or in part, by the last step
  int64_t tokens = 0;         // by the last step, train.seq_length for a sequence
  std::vector<double> loss;   // by TrainPoint: data/<source>/loss; NaN where a step has none of it
  double final_loss() const;  // mean over those of the last twentieth of the steps that have one; NaN without
};

// What a run folder tells.
struct RunData {
  std::string dir, name;  // name: the last part of the folder's path
  std::optional<RunConfig> config;
  std::string build;
  std::string data_order;  // digest: two runs with the same one saw the same rows in the same order; empty if not known
  std::vector<TrainPoint> train;
  std::map<std::string, SourceData> sources;                  // by name
  std::map<std::string, std::vector<HeldOutPoint>> held_out;  // by name of the set
  std::vector<ExpertLoads> loads;
  std::vector<RunEvent> events;
  // What log.metrics asked of layers, as it is called there: mean over the main model's layers, or the largest where
  // the name ends in "max", of the last twentieth of the steps.
  std::map<std::string, double> layer_numbers;

  bool finished() const { return config && !train.empty() && train.back().step >= config->run.steps; }
  // Mean training loss over the last twentieth of the steps, at least one; NaN without steps.
  double final_loss() const;
  // Mean over the sets of the last held-out loss; NaN if there is none.
  double final_held_out_loss() const;
  double median_tokens_per_s() const;  // NaN without steps
};

// Errors: IoError if the folder holds no metrics.jsonl, DataError if a file is damaged, ConfigError.
RunData read_run(const std::string& run_dir);

// Gives runs names that differ: as much of the ends of their paths as that takes.
void make_names_differ(std::vector<RunData>& runs);

}  // namespace braid
