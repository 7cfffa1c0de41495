#include "trainer/plan.h"

#include <CLI/CLI.hpp>
#include <algorithm>
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
    int64_t ranks = 0;  // 0: not given
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
      RunConfig config = read_config(options->config, options->overrides);
      check_model_config(config);
      const int64_t ranks = std::max<int64_t>(1, options->ranks);
      if (config.train.seq_length == 0 && options->ranks > 0) {
        config.train.seq_length = std::min<int64_t>(4096, config.model.max_position_embeddings);
        config.train.global_batch_size = config.train.micro_batch_size * ranks;
        std::printf("the config names no batch: memory is that of train.micro_batch_size %lld, train.seq_length %lld\n",
                    static_cast<long long>(config.train.micro_batch_size),
                    static_cast<long long>(config.train.seq_length));
      }
      if (config.train.seq_length > 0) check_config_for_ranks(config, ranks);
      if (options->table)
        std::printf("%s\n", format_parameter_table(parameter_table(config.model, config.mtp)).c_str());
      std::printf("%s", format_plan(config, ranks).c_str());
      return 0;
    };
  });
}

}  // namespace braid
