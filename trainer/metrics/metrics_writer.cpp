#include "trainer/metrics/metrics_writer.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <tuple>

#include "kernels/core/error.h"

namespace braid {
namespace {

namespace fs = std::filesystem;

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

// Cuts a file in front of the first line for which keep(line) is false or that has no end. Steps never fall in these
// files, so everything from there on is of later steps or torn. Needs no space: it also works on a full disk.
template <class Keep>
void cut(const std::string& path, Keep keep) {
  std::error_code error;
  if (!fs::is_regular_file(path, error)) return;
  std::ifstream in(path, std::ios::binary);
  check<IoError>(in.is_open(), path, ": cannot be read");
  uintmax_t kept_bytes = 0;
  for (std::string line; std::getline(in, line) && !in.eof() && keep(line);) kept_bytes += line.size() + 1;
  check<IoError>(!in.bad(), path, ": cannot be read");
  in.close();
  fs::resize_file(path, kept_bytes, error);
  check<IoError>(!error, path, ": cannot be cut to its first ", kept_bytes, " bytes: ", error.message());
}

// Unbuffered: a line is one write.
std::FILE* open_to_append(const std::string& path) {
  std::FILE* file = std::fopen(path.c_str(), "ae");
  check<IoError>(file != nullptr, path, ": cannot be opened for writing: ", reason(errno));
  std::setvbuf(file, nullptr, _IONBF, 0);
  return file;
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
  cut(jsonl, [&](const std::string& line) {
    const auto json = nlohmann::json::parse(line, nullptr, false);
    if (!json.is_object()) return false;
    const auto step = json.find("step");
    return step != json.end() && step->is_number_integer() && step->get<int64_t>() <= last_step;
  });
  cut(csv, [&](const std::string& line) {
    const std::vector<std::string> cells = split_cells(line);
    if (columns_.empty()) {
      columns_ = cells;
      return true;
    }
    const size_t column = std::find(columns_.begin(), columns_.end(), "step") - columns_.begin();
    if (cells.size() != columns_.size() || column == columns_.size()) return false;
    const std::string& cell = cells[column];
    int64_t step = 0;
    return std::from_chars(cell.data(), cell.data() + cell.size(), step).ec == std::errc() && step <= last_step;
  });
  jsonl_ = open_to_append(jsonl);
  csv_ = open_to_append(csv);
}

MetricsWriter::~MetricsWriter() {
  for (std::FILE* file : {jsonl_, csv_})
    if (file) std::fclose(file);
}

bool MetricsWriter::append(std::FILE* file, const std::string& text) {
  struct stat before = {};
  const bool known = fstat(fileno(file), &before) == 0 && S_ISREG(before.st_mode);
  if (std::fwrite(text.data(), 1, text.size(), file) == text.size()) return true;
  ++dropped_;
  std::clearerr(file);
  // What of the line did get in must not become the beginning of the next one.
  if (known) std::ignore = ftruncate(fileno(file), before.st_size);
  return false;
}

void MetricsWriter::write_train(const MetricsLine& line) {
  append(jsonl_, line.to_json() + '\n');
  std::string text;
  const bool header = columns_.empty();
  if (header) {
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
  if (!append(csv_, text + '\n') && header) columns_.clear();  // the next line brings the header
}

void MetricsWriter::write_validation(const MetricsLine& line) { append(jsonl_, line.to_json() + '\n'); }

}  // namespace braid
