#include "trainer/report/run_data.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "kernels/core/error.h"
#include "kernels/core/file_text.h"
#include "trainer/config/config_reader.h"
#include "trainer/metrics/run_search.h"
#include "trainer/metrics/step_lines.h"
#include "trainer/report/statistics.h"

namespace braid {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

double number(const Json& line, const char* name) {
  const auto value = line.find(name);
  return value != line.end() && value->is_number() ? value->get<double>() : kNaN;
}

size_t last_twentieth(size_t steps) { return std::max<size_t>(1, steps / 20); }

// "attention/layer_03/logit_max" -> "attention/logit_max"; empty if it is not of a layer of the main model.
std::string name_without_layer(const std::string& field) {
  const size_t begin = field.find('/'), end = field.rfind('/');
  if (begin == end) return "";
  const std::string layer = field.substr(begin + 1, end - begin - 1);
  return layer.starts_with("layer_") ? field.substr(0, begin) + field.substr(end) : "";
}

// What layers told about one step, each number over the layers.
std::map<std::string, double> over_layers(const RunData& run, const Json& line) {
  std::map<std::string, std::vector<double>> by_name;
  for (const auto& [field, value] : line.items()) {
    const std::string name = name_without_layer(field);
    if (!name.empty() && run.config->log.wants(name) && value.is_number()) by_name[name].push_back(value.get<double>());
  }
  std::map<std::string, double> result;
  for (const auto& [name, values] : by_name)
    result[name] = name.ends_with("max") ? *std::max_element(values.begin(), values.end())
                                         : std::accumulate(values.begin(), values.end(), 0.0) / double(values.size());
  return result;
}

// The name in "data/<name>/<what>"; empty if the field is another one.
std::string source_of(const std::string& field, const std::string& what) {
  const std::string begin = "data/", end = "/" + what;
  if (!field.starts_with(begin) || !field.ends_with(end) || field.size() <= begin.size() + end.size()) return "";
  return field.substr(begin.size(), field.size() - begin.size() - end.size());
}

// What the line of the last training point tells of the sources.
void add_sources(RunData& run, const Json& line) {
  for (const auto& [field, value] : line.items()) {
    if (const std::string name = source_of(field, "epoch"); !name.empty() && value.is_number())
      run.sources[name].epochs = value.get<double>();
    if (const std::string name = source_of(field, "tokens"); !name.empty() && value.is_number_integer())
      run.sources[name].tokens = value.get<int64_t>();
    if (const std::string name = source_of(field, "loss"); !name.empty() && value.is_number()) {
      std::vector<double>& loss = run.sources[name].loss;
      loss.resize(run.train.size() - 1, kNaN);
      loss.push_back(value.get<double>());
    }
  }
}

void add_line(RunData& run, const Json& line) {
  const auto step = line.at("step").get<int64_t>();
  if (line.contains("train/loss_lm")) {
    TrainPoint p;
    p.step = step;
    p.tokens = line.value("tokens", int64_t{0});
    const double ms = number(line, "perf/step_ms");
    p.seconds = (run.train.empty() ? 0 : run.train.back().seconds) + (ms > 0 ? ms / 1e3 : 0);
    p.loss = number(line, "train/loss_lm");
    p.grad_norm = number(line, "train/grad_norm");
    p.lr = number(line, "train/lr");
    p.tokens_per_s = number(line, "perf/tokens_per_s");
    run.train.push_back(p);
    add_sources(run, line);
  }
  for (const auto& [name, value] : line.items()) {
    if (!name.starts_with("val/") || !name.ends_with("/loss") || !value.is_number()) continue;
    const bool after_a_step = !run.train.empty();
    run.held_out[name.substr(4, name.size() - 9)].push_back({step, after_a_step ? run.train.back().tokens : 0,
                                                             after_a_step ? run.train.back().seconds : 0,
                                                             value.get<double>()});
  }
}

}  // namespace

double RunData::final_loss() const {
  if (train.empty()) return kNaN;
  const size_t count = last_twentieth(train.size());
  double sum = 0;
  for (size_t i = train.size() - count; i < train.size(); ++i) sum += train[i].loss;
  return sum / double(count);
}

double SourceData::final_loss() const {
  double sum = 0;
  int64_t count = 0;
  for (size_t i = loss.size() - std::min(loss.size(), last_twentieth(loss.size())); i < loss.size(); ++i)
    if (std::isfinite(loss[i])) sum += loss[i], ++count;
  return count > 0 ? sum / double(count) : kNaN;
}

double RunData::final_held_out_loss() const {
  double sum = 0;
  for (const auto& [name, points] : held_out) sum += points.back().loss;
  return held_out.empty() ? kNaN : sum / double(held_out.size());
}

double RunData::median_tokens_per_s() const {
  std::vector<double> values;
  for (const TrainPoint& p : train)
    if (std::isfinite(p.tokens_per_s)) values.push_back(p.tokens_per_s);
  return median(std::move(values));
}

RunData read_run(const std::string& run_dir) {
  RunData run;
  run.dir = run_dir;
  const fs::path folder = fs::path(run_dir).lexically_normal();
  run.name = (folder.has_filename() ? folder : folder.parent_path()).filename().string();
  if (run.name.empty() || run.name == ".") run.name = fs::absolute(folder).parent_path().filename().string();

  const std::string path = metrics_of_run(folder.string());
  std::error_code error;
  const fs::path config = folder / "config.resolved.yaml";
  if (fs::exists(config, error)) run.config = read_config(config.string(), {});
  std::map<std::string, std::vector<double>> of_layers;  // by step
  for_each_step_line(path, "a line of metrics", [&](const Json& line) {
    add_line(run, line);
    if (!run.config || run.config->log.metrics.empty()) return;
    for (const auto& [name, value] : over_layers(run, line)) of_layers[name].push_back(value);
  });
  for (auto& [name, source] : run.sources) source.loss.resize(run.train.size(), kNaN);
  for (const auto& [name, values] : of_layers) {
    const auto count = static_cast<std::ptrdiff_t>(last_twentieth(values.size()));
    run.layer_numbers[name] = std::accumulate(values.end() - count, values.end(), 0.0) / double(count);
  }

  run.build = first_line(file_text((folder / "build.txt").string()));
  run.data_order = first_line(file_text((folder / "data_order.txt").string()));
  run.loads = read_expert_loads(folder.string());
  run.events = read_run_events(folder.string());
  return run;
}

void make_names_differ(std::vector<RunData>& runs) {
  const auto name_of = [](const RunData& run, int parts) {
    fs::path path = fs::absolute(run.dir).lexically_normal(), name;
    if (!path.has_filename()) path = path.parent_path();
    for (; parts > 0 && path.has_filename(); --parts, path = path.parent_path())
      name = name.empty() ? path.filename() : path.filename() / name;
    return name.string();
  };
  for (int parts = 1; parts < 64; ++parts) {
    std::set<std::string> names;
    for (RunData& run : runs) names.insert(run.name = name_of(run, parts));
    if (names.size() == runs.size()) return;
  }
}

}  // namespace braid
