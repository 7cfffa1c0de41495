#include "trainer/plan.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>

#include "model/parameter_layout.h"
#include "trainer/cli/commands.h"
#include "trainer/config/config_reader.h"
#include "trainer/huggingface/config_json.h"

namespace braid {
namespace {

// A Hugging Face model is planned as it would be trained on GPUs, in bf16.
RunConfig read_plan_config(const std::string& path, const std::vector<std::string>& overrides) {
  if (!path.ends_with(".json")) return read_config(path, overrides);
  RunConfig config;
  config.model = read_config_json(path);
  config.precision = Precision::kBf16;
  apply_overrides(config, overrides);
  return config;
}

}  // namespace

void add_plan_command(CLI::App& app, Action& action) {
  struct Options {
    std::string config;
    std::vector<std::string> overrides;
    int64_t ranks = 0;  // 0: not given
    std::string device;
    bool table = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("plan", "Parameter counts and memory per rank; allocates nothing");
  command->add_option("config", options->config, "YAML config, or a model's config.json; without a batch, counts alone")
      ->required();
  command->add_option("overrides", options->overrides, "section.key=value, applied in order");
  command->add_option("--ranks", options->ranks, "ranks of the run")->check(CLI::Range(1, 1 << 20));
  command->add_option("--device", options->device,
                      "says whether a rank's memory fits this GPU, and what would make it: a100, h100, h200, 80GB, …");
  command->add_flag("--table", options->table, "print every parameter too");
  command->callback([options, &action] {
    action = [options] {
      RunConfig config = read_plan_config(options->config, options->overrides);
      check_model_config(config);
      const int64_t ranks = std::max<int64_t>(1, options->ranks);
      if (config.train.seq_length == 0 && (options->ranks > 0 || !options->device.empty())) {
        config.train.seq_length = std::min<int64_t>(4096, config.model.max_position_embeddings);
        config.train.global_batch_size = config.train.micro_batch_size * ranks;
        std::printf("the config names no batch: memory is that of train.micro_batch_size %lld, train.seq_length %lld\n",
                    static_cast<long long>(config.train.micro_batch_size),
                    static_cast<long long>(config.train.seq_length));
      }
      if (config.train.seq_length > 0) check_config_for_ranks(config, ranks);
      if (options->table)
        std::printf("%s\n", format_parameter_table(parameter_table(config.model, config.mtp)).c_str());
      std::optional<GpuModel> gpu;
      if (!options->device.empty()) gpu = gpu_model(options->device);
      else if (config.device == DeviceChoice::kCuda || config.precision == Precision::kBf16) gpu = gpu_model("h100");
      if (config.memory.recompute == Recompute::kAuto)
        config.memory.recompute = recompute_that_fits(config, ranks, gpu ? &*gpu : nullptr);
      std::printf("%s", format_plan(config, ranks, gpu ? &*gpu : nullptr).c_str());
      return 0;
    };
  });
}

}  // namespace braid
