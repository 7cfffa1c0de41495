#include "trainer/metrics/metrics_writer.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>

#include "kernels/core/error.h"

namespace braid {
namespace {

// Shortest text that reads back to the same bits. It never looks like an integer: JSON readers take -0 for 0.
std::string shortest(double value) {
  char buffer[32];
  std::string text(buffer, std::to_chars(buffer, buffer + sizeof buffer, value).ptr);
  if (text.find_first_of(".e") == text.npos) text += ".0";
  return text;
}

std::string to_text(const MetricsLine::Value& value, const char* not_finite) {
  if (const auto* integer = std::get_if<int64_t>(&value)) return std::to_string(*integer);
  const double number = std::get<double>(value);
  return std::isfinite(number) ? shortest(number) : not_finite;
}

std::vector<std::string> split_cells(const std::string& row) {
  std::vector<std::string> cells(1);
  for (const char c : row) {
    if (c == ',') cells.emplace_back();
    else cells.back() += c;
  }
  return cells;
}

}  // namespace

std::string MetricsLine::to_json() const {
  std::string text = "{";
  for (const auto& [name, value] : fields_) {
    const auto replace = nlohmann::json::error_handler_t::replace;
    text += (text.size() > 1 ? ", " : "") + nlohmann::json(name).dump(-1, ' ', false, replace) + ": " +
            to_text(value, "null");
  }
  return text + "}";
}

MetricsWriter::MetricsWriter(const std::string& run_dir, int64_t last_step) {
  const std::string jsonl = run_dir + "/metrics.jsonl", csv = run_dir + "/metrics.csv";
  // Steps never fall in these files, so everything behind the first later line is of later steps.
  cut_lines(jsonl, [&](const std::string& line) {
    const auto json = nlohmann::json::parse(line, nullptr, false);
    const auto step = json.is_object() ? json.find("step") : json.end();
    if (!json.is_object() || step == json.end() || !step->is_number_integer()) return OldLine::kIsUnreadable;
    if (step->get<int64_t>() > last_step) return OldLine::kIsLater;
    for (const auto& [name, value] : json.items())
      if (name.starts_with("val/")) last_validation_step_ = step->get<int64_t>();
    return OldLine::kStays;
  });
  cut_lines(csv, [&](const std::string& line) {
    const std::vector<std::string> cells = split_cells(line);
    if (columns_.empty()) {
      columns_ = cells;
      return OldLine::kStays;
    }
    const size_t column = std::find(columns_.begin(), columns_.end(), "step") - columns_.begin();
    if (cells.size() != columns_.size() || column == columns_.size()) return OldLine::kIsUnreadable;
    const std::string& cell = cells[column];
    int64_t step = 0;
    if (std::from_chars(cell.data(), cell.data() + cell.size(), step).ec != std::errc()) return OldLine::kIsUnreadable;
    return step <= last_step ? OldLine::kStays : OldLine::kIsLater;
  });
  jsonl_.emplace(jsonl);
  csv_.emplace(csv);
}

void MetricsWriter::Lines::append(std::string line) {
  waiting.push_back(std::move(line));
  write_waiting();
}

bool MetricsWriter::Lines::write_waiting() {
  for (; !waiting.empty(); waiting.pop_front())
    if (!file.append(waiting.front())) return false;
  return true;
}

void MetricsWriter::flush() {
  for (Lines* lines : {&*jsonl_, &*csv_}) {
    const bool written = lines->write_waiting();
    check<IoError>(written, lines->file.path(), ": ", lines->waiting.size(),
                   " lines of metrics cannot be written: ", reason(errno));
    lines->file.sync();
  }
}

void MetricsWriter::write_train(const MetricsLine& line) {
  jsonl_->append(line.to_json());
  std::string text;
  if (columns_.empty()) {
    for (const auto& [name, value] : line.fields()) {
      text += (columns_.empty() ? "" : ",") + name;
      columns_.push_back(name);
    }
    text += '\n';
  }
  for (size_t i = 0; i < columns_.size(); ++i) {
    if (i > 0) text += ',';
    for (const auto& [name, value] : line.fields())
      if (name == columns_[i]) text += to_text(value, "");
  }
  csv_->append(std::move(text));
}

void MetricsWriter::write_jsonl(const MetricsLine& line) { jsonl_->append(line.to_json()); }

}  // namespace braid
