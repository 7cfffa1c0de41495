#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "trainer/cli/arguments.h"
#include "trainer/cli/commands.h"
#include "trainer/cli/print.h"
#include "trainer/config/config_help.h"
#include "trainer/datasets.h"

namespace braid {
namespace {

struct Options {
  ConfigArguments config;
  int64_t num_ranks = 0;  // 0: not given
  bool docs = false, json = false, no_data = false, study = false;
  std::string key, before, after;
};

std::string summary(const RunConfig& config, int64_t num_ranks) {
  const ModelConfig& model = config.model;
  const TrainSection& train = config.train;
  std::string text = concat(model.num_hidden_layers, " layers", config.mtp.on() ? " + MTP" : "", ", hidden ",
                            model.hidden_size, ", ", model.num_experts, " experts top-", model.num_experts_per_tok,
                            "; ", config.run.steps, " steps of ", train.global_batch_size, " x ", train.seq_length,
                            " = ", train.global_batch_size * train.seq_length, " tokens");
  if (num_ranks > 0)
    text += concat("; on ", num_ranks, num_ranks == 1 ? " rank " : " ranks ",
                   train.global_batch_size / (train.micro_batch_size * num_ranks / config.parallel.context),
                   " micro-batches of ", train.micro_batch_size, " each, ", model.num_experts / config.parallel.expert,
                   " experts of a layer per rank",
                   config.parallel.context > 1 ? concat(", rows shared by ", config.parallel.context) : "");
  return text;
}

int check_command(const Options& options) {
  const RunConfig config = options.config.read();
  check_config(config);
  if (options.num_ranks > 0) check_config_for_ranks(config, options.num_ranks);
  if (!options.no_data) check_data_is_there(config);
  print_line(options.config.path, " is fine: ", summary(config, options.num_ranks));
  return 0;
}

// The lines of one section of a config's YAML.
std::string section_of(const std::string& yaml, const std::string& name) {
  const size_t begin = yaml.find("\n" + name + ":") + 1;
  size_t end = yaml.find('\n', begin) + 1;
  while (end < yaml.size() && yaml[end] == ' ') end = yaml.find('\n', end) + 1;
  return yaml.substr(begin, end - begin);
}

// Of a model its section alone: what a run on its weights begins with, as a base beside others.
int print_command(const Options& options) {
  const auto& [path, overrides] = options.config;
  const RunConfig config = path.empty() ? RunConfig() : read_any_config(path, overrides);
  const std::string yaml = to_yaml(config, options.docs ? ConfigComments::kYes : ConfigComments::kNo);
  const bool is_model = !path.empty() && names_a_model(path);
  std::fputs((is_model ? section_of(yaml, "model") : yaml).c_str(), stdout);
  return 0;
}

int diff_command(const Options& options) {
  const auto differences = compare_configs(read_any_config(options.before), read_any_config(options.after));
  if (options.json) {
    nlohmann::ordered_json json = nlohmann::ordered_json::object();
    for (const ConfigDifference& d : differences) json[d.key] = {d.before, d.after};
    print_json(json, 2);
    return 0;
  }
  for (const ConfigDifference& d : differences) print_line(d.key, ": ", d.before, " -> ", d.after);
  if (differences.empty()) print_line("no key differs");
  return 0;
}

}  // namespace

void add_config_command(Command app) {
  const Command config = app.command("config", "Check, print, compare and explain configs").needs_command();
  const auto options = std::make_shared<Options>();

  const Command check = config.command("check", "Say what is wrong with a config, or that it is fine");
  add_config(check, options->config).required();
  check.option("--ranks", options->num_ranks, "also check what depends on the number of ranks").whole(1, 1 << 20);
  check.flag("--no-data", options->no_data, "do not open the shards and texts that it names");
  check.runs([options] { return check_command(*options); });

  const Command print = config.command("print", "Print a config with bases and overrides resolved, or the defaults");
  add_config(print, options->config,
             "YAML config, or the folder of a run or of a Hugging Face model (its section alone); without one, the "
             "defaults");
  print.flag("--docs", options->docs, "say what each key means");
  const Command explain = config.command("explain", "Say what a key means, its type and default");
  explain.option("key", options->key, "a key like optimizer.lr, or a section").required();
  explain.runs([options] {
    std::fputs(explain_key(options->key).c_str(), stdout);
    return 0;
  });

  const Command diff = config.command("diff", "Keys whose values differ between two configs or runs");
  diff.option("before", options->before, "YAML file, or folder of a run or of a Hugging Face model").required();
  diff.option("after", options->after, "the same").required();
  diff.flag("--json", options->json, "one JSON object: key, both values");
  diff.runs([options] { return diff_command(*options); });

  const Command schema = config.command("schema", "Print the JSON schema of configs or studies, for editors");
  schema.flag("--study", options->study, "that of a study, which `braid ablate` takes");
  schema.runs([options] {
    std::fputs((options->study ? study_schema() : config_schema()).c_str(), stdout);
    return 0;
  });

  print.runs([options] { return print_command(*options); });
}

}  // namespace braid
