#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "trainer/metrics/line_file.h"

namespace braid {

// One line of metrics, in the order in which the fields were set.
class MetricsLine {
 public:
  void set(std::string name, int64_t value) { fields_.emplace_back(std::move(name), value); }
  void set(std::string name, double value) { fields_.emplace_back(std::move(name), value); }
  using Value = std::variant<int64_t, double>;
  const std::vector<std::pair<std::string, Value>>& fields() const { return fields_; }

  // {"step": 1, "train/loss_lm": 5.5…}; doubles are printed so that they read back to the same bits, non-finite ones as
  // null.
  std::string to_json() const;

 private:
  std::vector<std::pair<std::string, Value>> fields_;
};

// metrics.jsonl and metrics.csv of a run folder (rank 0 only). A line is in the file at once, whole or not at all. One
// that cannot be written, as on a full disk, waits in memory for the next attempt: nothing is dropped. The CSV has the
// columns of the first training line and holds training lines only; a value that is not finite or not there is an empty
// cell.
class MetricsWriter {
 public:
  // Resume: lines of steps after `last_step` (and a torn last line) are cut from both files, so no step appears twice.
  // Errors: IoError if a file cannot be opened or cut.
  MetricsWriter(const std::string& run_dir, int64_t last_step);

  void write_train(const MetricsLine& line);
  // What is not of every step: evaluations, saves, keys that a resume changed.
  void write_jsonl(const MetricsLine& line);
  // All lines so far are on the disk when it returns.   Errors: IoError naming the file and what the system said.
  void flush();

  int64_t waiting_lines() const { return static_cast<int64_t>(jsonl_->waiting.size() + csv_->waiting.size()); }
  int64_t last_validation_step() const { return last_validation_step_; }  // 0: none

 private:
  // A file, and lines that it has not taken yet, oldest first.
  struct Lines {
    explicit Lines(const std::string& path) : file(path) {}
    void append(std::string line);
    bool write_waiting();  // false if some are left; errno then says why
    LineFile file;
    std::deque<std::string> waiting;
  };
  std::optional<Lines> jsonl_, csv_;
  std::vector<std::string> columns_;
  int64_t last_validation_step_ = 0;
};

}  // namespace braid
