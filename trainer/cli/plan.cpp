#include "trainer/plan.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>

#include "model/parameter_layout.h"
#include "trainer/cli/arguments.h"
#include "trainer/cli/commands.h"
#include "trainer/cli/print.h"
#include "trainer/huggingface/config_json.h"

namespace braid {
namespace {

// A Hugging Face model is planned as it would be trained on GPUs, in bf16.
RunConfig read_plan_config(const ConfigArguments& arguments) {
  if (!arguments.path.ends_with(".json")) return arguments.read();
  RunConfig config;
  config.model = read_config_json(arguments.path);
  config.precision = Precision::kBf16;
  apply_overrides(config, arguments.overrides);
  return config;
}

}  // namespace

void add_plan_command(Command app) {
  struct Options {
    ConfigArguments config;
    int64_t ranks = 0;  // 0: not given
    std::string device;
    bool table = false;
  };
  auto options = std::make_shared<Options>();
  const Command command = app.command("plan", "Parameter counts and memory per rank; allocates nothing");
  add_config(command, options->config, "YAML config, or a model's config.json; without a batch, counts alone")
      .required();
  command.option("--ranks", options->ranks, "ranks of the run").whole(1, 1 << 20);
  command.option("--device", options->device,
                 "says whether a rank's memory fits this GPU, and what would make it: a100, h100, h200, 80GB, …");
  command.flag("--table", options->table, "print every parameter too");
  command.runs([options] {
    RunConfig config = read_plan_config(options->config);
    check_model_config(config);
    const int64_t ranks = std::max<int64_t>(1, options->ranks);
    if (config.train.seq_length == 0 && (options->ranks > 0 || !options->device.empty())) {
      config.train.seq_length = std::min<int64_t>(4096, config.model.max_position_embeddings);
      config.train.global_batch_size = config.train.micro_batch_size * ranks;
      print_line("the config names no batch: memory is that of train.micro_batch_size ", config.train.micro_batch_size,
                 ", train.seq_length ", config.train.seq_length);
    }
    if (config.train.seq_length > 0) check_config_for_ranks(config, ranks);
    if (options->table) print_line(format_parameter_table(parameter_table(config.model, config.mtp)));
    std::optional<GpuModel> gpu;
    if (!options->device.empty()) gpu = gpu_model(options->device);
    else if (config.device == DeviceChoice::kCuda || config.precision == Precision::kBf16) gpu = gpu_model("h100");
    if (config.memory.recompute == Recompute::kAuto)
      config = with_recomputation(config, recompute_that_fits(config, ranks, gpu ? &*gpu : nullptr));
    std::printf("%s", format_plan(config, ranks, gpu ? &*gpu : nullptr).c_str());
    return 0;
  });
}

}  // namespace braid
