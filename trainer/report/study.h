#pragma once

#include <map>
#include <string>
#include <vector>

#include "trainer/config/study_config.h"
#include "trainer/report/run_data.h"

namespace braid {

// One run of a study.
struct StudyRun {
  std::string variant;  // "ratio=3:1", "scope=micro,experts=64": one name per axis
  int64_t seed = 0;
  std::string dir;                     // DIR/<variant>/seed-<seed>, with _ for what file names avoid
  std::vector<std::string> overrides;  // of the study's config, run.dir and train.seed included
};
// Every combination of the axes' variants in their order, the last axis fastest; all seeds of one variant together.
std::vector<StudyRun> expand_study(const StudyConfig& study, const std::string& dir);

// CUDA_VISIBLE_DEVICES of a run in `slot` (0, 1, …) on a host of `num_gpus` > 0 visible GPUs: one of those that
// `visible`, the value that this process was given (null: none), lists, or its number.
std::string gpu_of_slot(int64_t slot, int64_t num_gpus, const char* visible);

// What the finished runs of a study say about one variant. By run: in the order of
// `seeds`, NaN where a run has no such number.
struct VariantResult {
  std::string variant;
  std::vector<int64_t> seeds;      // of the runs
  std::vector<double> loss;        // final held-out loss by run (training loss where nothing is held out)
  std::vector<double> difference;  // of seeds that the first variant has too: this loss minus its
  double tokens_to_base_loss = 0;  // mean over seeds of the tokens at which the held-out loss reaches the first
                                   // variant's final one; NaN if it never does
  double tokens_per_s = 0;         // median over runs of a run's median
  std::vector<double> largest_norm_weight;                   // by run, of those that have a checkpoint
  std::map<std::string, std::vector<double>> layer_numbers;  // by name and run, of those that log them
};

struct StudyOutcome {
  StudyRun run;
  RunData data;
  double largest_norm_weight = 0;  // NaN without a checkpoint
};

// In the order of the variants.   Errors: DataError naming two runs of one seed that saw other rows or another order:
// their losses cannot be compared.
std::vector<VariantResult> compare_study(const std::vector<StudyOutcome>& outcomes);

// A table for the terminal, the same for the report, and as CSV.
std::string study_table(const std::vector<VariantResult>& results);
std::string study_table_as_html(const StudyConfig& study, const std::vector<VariantResult>& results);
std::string study_results_as_csv(const std::vector<VariantResult>& results);

}  // namespace braid
