#include "trainer/metrics/expert_loads.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "kernels/core/error.h"
#include "trainer/metrics/step_lines.h"

namespace braid {
namespace {

using Json = nlohmann::ordered_json;

std::string path_in(const std::string& run_dir) { return run_dir + "/expert_loads.jsonl"; }

}  // namespace

ExpertLoadsWriter::ExpertLoadsWriter(const std::string& run_dir, int64_t last_step) {
  cut_lines(path_in(run_dir), [&](const std::string& line) {
    const Json json = Json::parse(line, nullptr, false);
    if (!json.is_object() || !json.contains("step") || !json["step"].is_number_integer()) return OldLine::kIsUnreadable;
    return json["step"] <= last_step ? OldLine::kStays : OldLine::kIsLater;
  });
  file_.emplace(path_in(run_dir));
}

bool ExpertLoadsWriter::is_due(int64_t step, int64_t run_steps) {
  return step == 1 || step == run_steps || step % std::max<int64_t>(1, run_steps / kLines) == 0;
}

bool ExpertLoadsWriter::write(const ExpertLoads& loads) {
  Json line = {{"step", loads.step}};
  for (size_t layer = 0; layer < loads.layers.size(); ++layer) line[loads.layers[layer]] = loads.counts[layer];
  return file_->append(line.dump());
}

std::vector<ExpertLoads> read_expert_loads(const std::string& run_dir) {
  std::vector<ExpertLoads> all;
  const std::string path = path_in(run_dir);
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return all;
  for_each_step_line<Json>(path, "a line of expert loads", [&](const Json& line) {
    ExpertLoads loads;
    for (const auto& [name, value] : line.items()) {
      if (name == "step") {
        loads.step = value.get<int64_t>();
        continue;
      }
      loads.layers.push_back(name);
      loads.counts.push_back(value.get<std::vector<int64_t>>());
    }
    all.push_back(std::move(loads));
  });
  return all;
}

}  // namespace braid
