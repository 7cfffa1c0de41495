#include "trainer/cli/arguments.h"

#include <algorithm>
#include <filesystem>

#include "trainer/huggingface/config_json.h"
#include "trainer/metrics/run_search.h"

namespace braid {
namespace {

constexpr const char *kOfModel = "config.json", *kOfRun = "config.resolved.yaml";

std::string config_file(const std::string& path) {
  const std::string place = path.starts_with(kHuggingFacePrefix) ? path.substr(kHuggingFacePrefix.size()) : path;
  if (!std::filesystem::is_directory(place)) return place;
  for (const char* name : {kOfModel, kOfRun})
    if (const std::string file = place + "/" + name; std::filesystem::exists(file)) return file;
  throw ConfigError(concat(place, ": is a folder without ", kOfModel,
                           ", of a model in the Hugging Face format, and without ", kOfRun, ", of a run",
                           runs_inside(place)));
}

}  // namespace

bool names_a_model(const std::string& path) { return config_file(path).ends_with(".json"); }

RunConfig read_any_config(const std::string& path, const std::vector<std::string>& overrides) {
  const std::string file = config_file(path);
  if (names_a_model(file)) {
    RunConfig config;
    config.model = read_config_json(file);
    apply_overrides(config, overrides);
    return config;
  }
  RunConfig config = read_config(file, overrides);
  const auto names_folder = [](const std::string& key) { return key.starts_with("run.dir="); };
  if (file != path && std::none_of(overrides.begin(), overrides.end(), names_folder)) config.run.dir = path;
  return config;
}

}  // namespace braid
