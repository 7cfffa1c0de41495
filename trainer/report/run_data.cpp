#include "trainer/report/run_data.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "kernels/core/error.h"
#include "trainer/config/config_reader.h"

namespace braid {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

std::string text_of(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

double number(const Json& line, const char* name) {
  const auto value = line.find(name);
  return value != line.end() && value->is_number() ? value->get<double>() : kNaN;
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
  const size_t count = std::max<size_t>(1, train.size() / 20);
  double sum = 0;
  for (size_t i = train.size() - count; i < train.size(); ++i) sum += train[i].loss;
  return sum / double(count);
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
  if (values.empty()) return kNaN;
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

RunData read_run(const std::string& run_dir) {
  RunData run;
  run.dir = run_dir;
  const fs::path folder = fs::path(run_dir).lexically_normal();
  run.name = (folder.has_filename() ? folder : folder.parent_path()).filename().string();
  if (run.name.empty() || run.name == ".") run.name = fs::absolute(folder).parent_path().filename().string();

  const std::string path = (folder / "metrics.jsonl").string();
  std::ifstream in(path);
  check<IoError>(in.is_open(), path, ": cannot be opened; a run folder holds what braid train wrote");
  std::string text;
  for (int64_t line_number = 1; std::getline(in, text); ++line_number) {
    const Json line = Json::parse(text, nullptr, false);
    if (line.is_discarded() && in.eof()) break;  // torn by a kill, or still being written
    check<DataError>(line.is_object() && line.contains("step") && line["step"].is_number_integer(), path, ":",
                     line_number, ": is not a line of metrics");
    add_line(run, line);
  }
  check<IoError>(!in.bad(), path, ": cannot be read");

  const fs::path config = folder / "config.resolved.yaml";
  if (fs::exists(config)) run.config = read_config_text(text_of(config), config.string());
  run.build = first_line(text_of(folder / "build.txt"));
  run.data_order = first_line(text_of(folder / "data_order.txt"));
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
