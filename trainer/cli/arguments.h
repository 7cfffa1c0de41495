#pragma once

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "trainer/cli/options.h"
#include "trainer/config/config_reader.h"
#include "trainer/metrics/run_search.h"

namespace braid {

// A config as commands name it: a YAML file and keys that are set behind it.
struct ConfigArguments {
  std::string path;
  std::vector<std::string> overrides;
  RunConfig read() const { return read_config(path, overrides); }  // Errors: ConfigError
};

// A config file, or the one that a run folder holds, wherever the run was when it was written.
inline RunConfig read_config_or_run(const std::string& path, const std::vector<std::string>& overrides = {}) {
  if (!std::filesystem::is_directory(path)) return read_config(path, overrides);
  const std::string config_path = path + "/config.resolved.yaml";
  if (!std::filesystem::exists(config_path))
    throw ConfigError(path + ": is no run folder, there is no config.resolved.yaml" + runs_inside(path));
  RunConfig config = read_config(config_path, overrides);
  const auto names_folder = [](const std::string& key) { return key.starts_with("run.dir="); };
  if (std::none_of(overrides.begin(), overrides.end(), names_folder)) config.run.dir = path;
  return config;
}

// Adds both. What is returned is the option of the file.
inline Option add_config(Command command, ConfigArguments& config, const std::string& what = "YAML config") {
  const Option path = command.option("config", config.path, what);
  command.option("overrides", config.overrides, "section.key=value, applied in order");
  return path;
}

}  // namespace braid
