#pragma once

#include <cstdint>
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

// metrics.jsonl and metrics.csv of a run folder (rank 0 only). A line is in the file at once, whole or not at all; a
// full disk or a closed pipe never stops training: lines are dropped and counted. The CSV has the columns of the first
// training line and holds training lines only; a value that is not finite or not there is an empty cell.
class MetricsWriter {
 public:
  // Resume: lines of steps after `last_step` (and a torn last line) are cut from both files, so no step appears twice.
  // Errors: IoError if a file cannot be opened or cut.
  MetricsWriter(const std::string& run_dir, int64_t last_step);

  void write_train(const MetricsLine& line);
  void write_validation(const MetricsLine& line);
  int64_t dropped_lines() const { return dropped_; }  // of both files together

 private:
  bool append(LineFile& file, const std::string& text);
  std::optional<LineFile> jsonl_, csv_;
  std::vector<std::string> columns_;
  int64_t dropped_ = 0;
};

}  // namespace braid
