#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "trainer/checkpoint/checkpoint_saver.h"
#include "trainer/config/config.h"
#include "trainer/metrics/background.h"
#include "trainer/metrics/console.h"
#include "trainer/metrics/expert_loads.h"
#include "trainer/metrics/metrics_writer.h"
#include "trainer/metrics/tensorboard_writer.h"
#include "trainer/run/run_folder.h"
#include "trainer/train_step.h"

namespace braid {

// What rank 0 has beside computing: run folder, console and the files of metrics, which a thread writes so that no step
// waits for a disk. The other ranks have none.
class RunFront {
 public:
  // Errors: those of RunFolder.
  RunFront(const RunConfig& config, ConsoleStyle style);
  // Before any line. What files hold of steps after `step` is cut.   Errors: IoError.
  void open_metrics(int64_t step);

  // Lines go into their files, TensorBoard's too, in the order in which they are given; those of a step and of an
  // evaluation also to a console that writes JSON. A file that takes no more is given up, and that is said once; but
  // metrics.jsonl and metrics.csv lose nothing, see MetricsWriter.
  void write_step(const MetricsLine& line, std::optional<ExpertLoads> loads);
  void write_evaluation(const MetricsLine& line);
  void write_line(const MetricsLine& line);  // of what is neither: a save, keys that a resume changed
  int64_t last_validation_step() const { return metrics_->last_validation_step(); }  // of an earlier start

  // All metrics so far are on the disk when it returns, so that no checkpoint holds a step that they lack.
  // Errors: IoError.
  void flush();
  // Ends the console's output, and waits at most so long for it. What was lost; empty: nothing.
  std::string end_output(std::chrono::milliseconds patience) { return pump_.finish(patience); }

  const RunFolder& folder() const { return folder_; }
  Console& console() { return console_; }

 private:
  void write_beside(const MetricsLine& line, const ExpertLoads* loads);

  RunFolder folder_;
  TextPump pump_;
  Console console_;
  bool with_tensorboard_;
  std::unique_ptr<MetricsWriter> metrics_;
  std::unique_ptr<ExpertLoadsWriter> loads_;
  std::unique_ptr<TensorBoardWriter> tensorboard_;
  Background files_;  // writes all of them; it ends, with all its work done, before they do
};

// ---- What is told of a run, in the units of docs/metrics.md

// Of a step that took so many seconds, of which it waited wait_seconds for data; `tokens`: of the run so far.
MetricsLine training_line(int64_t step, int64_t tokens, const StepResult& result, const RunConfig& config,
                          double seconds, double wait_seconds);
// How metrics call the MoE layers: layer_00, …, and mtp last if the MTP block's is among them.
std::vector<std::string> moe_layer_names(size_t count, bool with_mtp);
ExpertLoads expert_loads(int64_t step, const StepResult& result, const RunConfig& config);
MetricsLine save_line(int64_t step, const SaveReport& report);

std::string describe_save(const SaveReport& report);       // "wrote 1.50 GB in 0.61 s (2.46 GB/s), read back …"
std::string bytes_in_time(int64_t bytes, double seconds);  // "162.53 GB in 61.30 s (2.65 GB/s)"

}  // namespace braid
