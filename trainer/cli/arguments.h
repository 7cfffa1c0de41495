#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "trainer/cli/options.h"
#include "trainer/config/config_reader.h"

namespace braid {

// A config as commands name it: a YAML file and keys that are set behind it.
struct ConfigArguments {
  std::string path;
  std::vector<std::string> overrides;
  RunConfig read() const { return read_config(path, overrides); }  // Errors: ConfigError
};

// A config file, or the one that a run folder holds.
inline RunConfig read_config_or_run(const std::string& path, const std::vector<std::string>& overrides = {}) {
  const bool is_run = std::filesystem::is_directory(path);
  return read_config(is_run ? path + "/config.resolved.yaml" : path, overrides);
}

// Adds both. What is returned is the option of the file.
inline Option add_config(Command command, ConfigArguments& config, const std::string& what = "YAML config") {
  const Option path = command.option("config", config.path, what);
  command.option("overrides", config.overrides, "section.key=value, applied in order");
  return path;
}

}  // namespace braid
