#include "trainer/plan.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "model/parameter_layout.h"
#include "trainer/cli/arguments.h"
#include "trainer/cli/commands.h"
#include "trainer/cli/print.h"
#include "trainer/cli/session.h"

namespace braid {
namespace {

// A Hugging Face model is planned as it would be trained on GPUs, in bf16.
RunConfig read_plan_config(const ConfigArguments& arguments) {
  std::vector<std::string> overrides = arguments.overrides;
  if (names_a_model(arguments.path)) overrides.insert(overrides.begin(), "precision=bf16");
  return read_any_config(arguments.path, overrides);
}

// Of which some share experts, and some rows; what is no such number is refused later.
int64_t fewest_ranks(const ParallelConfig& parallel) {
  const auto counts = [](int64_t ranks) { return ranks > 0 && ranks <= kMostRanks; };
  return counts(parallel.expert) && counts(parallel.context) ? std::lcm(parallel.expert, parallel.context) : 1;
}

}  // namespace

void add_plan_command(Command app) {
  struct Options {
    ConfigArguments config;
    int64_t ranks = 0;  // 0: not given
    std::string device;
    bool table = false, json = false;
  };
  auto options = std::make_shared<Options>();
  const Command command = app.command("plan", "Parameter counts and memory per rank; allocates nothing");
  add_config(command, options->config,
             "YAML config, a model's config.json, or the folder of a model or run; without a batch, counts alone")
      .required();
  command.option("--ranks", options->ranks, "ranks of the run; as many as share experts and rows unless given")
      .whole(1, kMostRanks);
  command.option("--device", options->device,
                 "says whether a rank's memory fits this GPU, and what would make it: a100, h100, h200, 80GB, …");
  command.flag("--json", options->json, "print one JSON object; its memory is in bytes");
  command.flag("--table", options->table, "print every parameter too");
  command.runs([options] {
    use_default_threads();  // scratch is counted for them
    RunConfig config = read_plan_config(options->config);
    check_model_config(config);
    std::optional<GpuModel> gpu;
    if (!options->device.empty()) {
      gpu = gpu_model(options->device);
      config.device = DeviceChoice::kCuda;
    } else if (config.device == DeviceChoice::kCuda || config.precision == Precision::kBf16) {
      gpu = gpu_model("h100");
    }
    const int64_t ranks = options->ranks > 0 ? options->ranks : fewest_ranks(config.parallel);
    if (config.train.seq_length == 0 && (options->ranks > 0 || !options->device.empty())) {
      config.train.seq_length = std::min<int64_t>(4096, config.model.max_position_embeddings);
      config.train.global_batch_size = config.train.micro_batch_size * ranks;
      print_note("the config names no batch: memory is that of train.micro_batch_size ", config.train.micro_batch_size,
                 ", train.seq_length ", config.train.seq_length);
    }
    if (config.train.seq_length > 0) check_config_for_ranks(config, ranks);
    if (config.memory.recompute == Recompute::kAuto)
      config = with_recomputation(config, recompute_that_fits(config, ranks, gpu ? &*gpu : nullptr));
    if (options->table && !options->json) print_line(format_parameter_table(parameter_table(config.model, config.mtp)));
    std::fputs((options->json ? plan_json : format_plan)(config, ranks, gpu ? &*gpu : nullptr).c_str(), stdout);
    return 0;
  });
}

}  // namespace braid
