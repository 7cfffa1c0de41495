#pragma once

#include <string>
#include <vector>

#include "trainer/config/config.h"

namespace braid {

// Reads a YAML config strictly and applies overrides of the form "section.key=value" in order.
// - `base: other.yaml` (or a list) is read first; a mapping is merged key by key, everything else is replaced. Paths of
//   `base`, init.from and data.sources are relative to the file that states them; those of overrides and run.dir to the
//   working folder. The result holds init.from and data paths absolute.
// - Refused with file, line and what is wrong: unknown keys (with the nearest known one, or what another framework's
//   name is called here), duplicate keys, values of the wrong type, anchors, aliases, tags, several documents, files
//   over 1 MiB, nesting deeper than 32.
//   Example: configs/runs/laptop.yaml:14: model.num_expert: unknown key, did you mean num_experts?
// - An override's value is a YAML scalar, [list] or {mapping}, held to the same rules; its messages start with
//   "command line: section.key:".
// Errors: ConfigError.
RunConfig read_config(const std::string& path, const std::vector<std::string>& overrides);

// Overrides alone, on a config that comes from elsewhere.
void apply_overrides(RunConfig& config, const std::vector<std::string>& overrides);

// The same for YAML text without `base`, such as the config stored in a checkpoint; `name` is how messages call it.
RunConfig read_config_text(const std::string& yaml, const std::string& name);

// Rules between keys that need no device, rank or file. Errors: ConfigError with the rule, the numbers and, where there
// are few, the nearest legal values.
void check_config(const RunConfig& config);
// The part of check_config that concerns the model alone (model, mtp, balance, init, allow_slow): what a config without
// run, train and data sections must meet.
void check_model_config(const RunConfig& config);
void check_context(const RunConfig& config);  // parallel.context alone
// The part that concerns a step on batches of any tokens: device, precision, parallel, train, optimizer.
void check_step_config(const RunConfig& config);
// That, and the rules that depend on the number of ranks (batch sizes, expert parallelism), for a model that passes its
// check.
void check_config_for_ranks(const RunConfig& config, int64_t num_ranks);

// YAML that read_config reads back to the same values; comments are the documentation of each key if asked for.
enum class ConfigComments { kNo, kYes };
std::string to_yaml(const RunConfig& config, ConfigComments comments = ConfigComments::kNo);

// "a.b" of every key whose value differs, with both values: what a checkpoint of one config says about another.
// A list element that one side lacks is "(absent)" there.
struct ConfigDifference {
  std::string key, before, after;
};
std::vector<ConfigDifference> compare_configs(const RunConfig& before, const RunConfig& after);

}  // namespace braid
