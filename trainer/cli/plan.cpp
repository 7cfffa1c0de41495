#include "trainer/plan.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "model/parameter_layout.h"
#include "trainer/cli/commands.h"
#include "trainer/config/config_reader.h"

namespace braid {

void add_plan_command(CLI::App& app, Action& action) {
  struct Options {
    std::string config;
    std::vector<std::string> overrides;
    int64_t ranks = 1;
    bool table = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("plan", "Parameter counts and memory per rank; allocates nothing");
  command->add_option("config", options->config, "YAML config; one that holds only a model gives the counts")
      ->required();
  command->add_option("overrides", options->overrides, "section.key=value, applied in order");
  command->add_option("--ranks", options->ranks, "ranks of the run")->check(CLI::Range(1, 1 << 20));
  command->add_flag("--table", options->table, "print every parameter too");
  command->callback([options, &action] {
    action = [options] {
      const RunConfig config = read_config(options->config, options->overrides);
      check_model_config(config);
      if (config.train.seq_length > 0) check_config_for_ranks(config, options->ranks);
      if (options->table)
        std::printf("%s\n", format_parameter_table(parameter_table(config.model, config.mtp)).c_str());
      std::printf("%s", format_plan(config, options->ranks).c_str());
      return 0;
    };
  });
}

}  // namespace braid
