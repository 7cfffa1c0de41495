#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "trainer/bench/step_bench.h"
#include "trainer/cli/commands.h"
#include "trainer/cli/session.h"
#include "trainer/config_reader.h"
#include "trainer/device/start.h"

namespace braid {

void add_bench_command(CLI::App& app, Action& action) {
  struct Options {
    std::string config;
    std::vector<std::string> overrides;
    StepBenchOptions step;
    bool json = false;
    bool skip_self_check = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("bench", "Measure speed");
  command->require_subcommand(1);
  CLI::App* step = command->add_subcommand("step", "Time of a training step on random tokens");
  step->add_option("config", options->config, "YAML config; needs no data")->required();
  step->add_option("overrides", options->overrides, "section.key=value, applied in order");
  step->add_option("--steps", options->step.steps, "steps to measure")->check(CLI::Range(1, 1 << 20));
  step->add_option("--warmup", options->step.warmup_steps, "steps before them")->check(CLI::Range(0, 1 << 20));
  step->add_flag("--json", options->json, "print one JSON object");
  step->add_flag("--skip-selfcheck", options->skip_self_check, "do not hold the GPU's kernels to the CPU's first");
  step->callback([options, &action] {
    action = [options] {
      RunConfig config = read_config(options->config, options->overrides);
      config.run.steps = options->step.total_steps();
      check_model_config(config);
      check<ConfigError>(config.train.seq_length > 0, options->config,
                         ": train.seq_length is not set, but a benchmark needs the shape of a batch");
      use_default_threads();
      const std::unique_ptr<Machine> machine = open_machine(config);
      check_config_for_ranks(config, machine->world->size());
      const ProcessMesh mesh(std::move(machine->world), config.parallel.expert, config.model.num_experts);
      start_on_device(machine->ctx, mesh, config, options->skip_self_check ? SelfCheck::kNo : SelfCheck::kYes, stderr);
      const StepBenchResult result = bench_step(machine->ctx, mesh, config, options->step);
      if (mesh.rank() != 0) return 0;
      std::printf("%s", options->json ? (step_bench_json(result, mesh.size()) + "\n").c_str()
                                      : format_step_bench(result, mesh.size()).c_str());
      return 0;
    };
  });
}

}  // namespace braid
