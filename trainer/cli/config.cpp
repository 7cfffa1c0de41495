#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "trainer/cli/commands.h"
#include "trainer/config/config_reader.h"
#include "trainer/datasets.h"

namespace braid {
namespace {

struct Options {
  std::string config;
  std::vector<std::string> overrides;
  int64_t num_ranks = 0;  // 0: not given
  bool docs = false, no_data = false;
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
                   train.global_batch_size / (train.micro_batch_size * num_ranks), " micro-batches of ",
                   train.micro_batch_size, " each, ", model.num_experts / config.parallel.expert,
                   " experts of a layer per rank");
  return text;
}

int check_command(const Options& options) {
  const RunConfig config = read_config(options.config, options.overrides);
  check_config(config);
  if (options.num_ranks > 0) check_config_for_ranks(config, options.num_ranks);
  if (!options.no_data) check_data_is_there(config);
  std::printf("%s is fine: %s\n", options.config.c_str(), summary(config, options.num_ranks).c_str());
  return 0;
}

int print_command(const Options& options) {
  const RunConfig config = options.config.empty() ? RunConfig() : read_config(options.config, options.overrides);
  std::fputs(to_yaml(config, options.docs ? ConfigComments::kYes : ConfigComments::kNo).c_str(), stdout);
  return 0;
}

}  // namespace

void add_config_command(CLI::App& app, Action& action) {
  CLI::App* config = app.add_subcommand("config", "Check or print a config");
  config->require_subcommand(1);
  const auto options = std::make_shared<Options>();

  CLI::App* check = config->add_subcommand("check", "Say what is wrong with a config, or that it is fine");
  check->add_option("config", options->config, "YAML file")->required();
  check->add_option("overrides", options->overrides, "section.key=value ...");
  check->add_option("--ranks", options->num_ranks, "also check what depends on the number of ranks")
      ->check(CLI::Range(1, 1 << 20));
  check->add_flag("--no-data", options->no_data, "do not open the shards and texts that it names");
  check->callback([&action, options] { action = [options] { return check_command(*options); }; });

  CLI::App* print =
      config->add_subcommand("print", "Print a config with bases and overrides resolved, or the defaults");
  print->add_option("config", options->config, "YAML file; without one, the defaults");
  print->add_option("overrides", options->overrides, "section.key=value ...");
  print->add_flag("--docs", options->docs, "say what each key means");
  print->callback([&action, options] { action = [options] { return print_command(*options); }; });
}

}  // namespace braid
