#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace braid {

// One value of an axis: a name and the keys that it sets, as on the command line.
struct VariantConfig {
  std::string name;
  std::vector<std::string> set;

  template <class Visit>
  void visit(Visit&& key) {
    key("name", name, "name of the variant; a part of its run folders' names");
    key("set", set, "what it sets: a list of section.key=value");
  }
};

struct AxisConfig {
  std::string name;
  std::vector<VariantConfig> variants;

  template <class Visit>
  void visit(Visit&& key) {
    key("name", name, "name of the axis");
    key("variants", variants, "its values; the first is what the others are compared with");
  }
};

// A study: every combination of the axes' variants, each with every seed, over one config.
struct StudyConfig {
  std::string question, claim;
  std::string config;
  std::vector<std::string> set;
  std::vector<int64_t> seeds;
  std::vector<AxisConfig> axes;

  template <class Visit>
  void visit(Visit&& key) {
    key("question", question, "what the study asks; stands in its report");
    key("claim", claim, "the published claim that it tests, and the number that would show it");
    key("config", config, "config of the runs, relative to this file");
    key("set", set, "what all runs set: a list of section.key=value");
    key("seeds", seeds, "train.seed of the repetitions: initial weights and order of the data");
    key("axes", axes, "what is varied; with several axes, every combination is run");
  }
};

// Reads a study strictly, with the messages of read_config. The path of `config` comes back relative to the working
// folder, or absolute. `overrides` (section.key=value) are what all runs set on top of the study's own `set`.
// Errors: ConfigError, also for a study without axes or seeds, names that are not A-Z a-z 0-9 _ . - : or stand twice,
// for axes that change which rows the runs see, in which order, as such runs cannot be compared, and for overrides of
// keys that an axis, the seeds or the runs' folders set.
StudyConfig read_study(const std::string& path, const std::vector<std::string>& overrides = {});

}  // namespace braid
