#pragma once

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

// The config that a path names: a YAML file, a model's config.json, or a folder that holds that of a run, wherever the
// run was when it was written, or of a model in the Hugging Face format, also behind "hf:". Of a model only the model
// section is its own. Errors: ConfigError; CheckpointError for a config.json that is none.
RunConfig read_any_config(const std::string& path, const std::vector<std::string>& overrides = {});
bool names_a_model(const std::string& path);

// Adds both. What is returned is the option of the file.
inline Option add_config(Command command, ConfigArguments& config, const std::string& what = "YAML config") {
  const Option path = command.option("config", config.path, what);
  command.option("overrides", config.overrides, "section.key=value, applied in order");
  return path;
}

}  // namespace braid
