#include <cstdio>
#include <map>
#include <memory>

#include "trainer/bench/operator_bench.h"
#include "trainer/bench/product_tuning.h"
#include "trainer/bench/step_bench.h"
#include "trainer/cli/arguments.h"
#include "trainer/cli/commands.h"
#include "trainer/cli/print.h"
#include "trainer/cli/session.h"
#include "trainer/device/start.h"
#include "trainer/step_memory.h"

namespace braid {
namespace {

int time_operators(OperatorBenchOptions options, Device device, int64_t num_tokens, bool json) {
  if (num_tokens == 0) num_tokens = default_bench_tokens(device);
  check_operator_names(options.ops);
  check<ConfigError>(num_tokens % 64 == 0, "--tokens ", num_tokens, ": must be a multiple of 64");
  check<EnvironmentError>(device == Device::kCpu || Context::num_gpus() > 0,
                          "braid bench times operators on a GPU, but none can be used here; --device cpu times them on "
                          "the CPU");
  options.sizes = bench_sizes(device, num_tokens);
  use_default_threads();
  RunConfig config;
  config.device = device == Device::kCuda ? DeviceChoice::kCuda : DeviceChoice::kCpu;
  config.precision = device == Device::kCuda ? Precision::kBf16 : Precision::kFp32;
  const std::unique_ptr<Machine> machine = open_machine(config);
  Context& ctx = machine->ctx;
  Communicator& world = *machine->world;
  check_operators_run(options.ops, world.size());
  OperatorBenchHead head{device_info(ctx), today(), world.size(), num_tokens, {}};
  head.ceilings = measure_ceilings(ctx, world, options);
  const bool prints = world.rank() == 0, prints_rows = prints && !json;
  auto print = [](const std::string& text) {
    std::fputs(text.c_str(), stdout);
    std::fflush(stdout);
  };
  if (prints_rows) print(format_operator_head(head));
  const std::vector<OperatorTiming> timings = bench_operators(ctx, world, options, head.ceilings, [&](const auto& t) {
    if (prints_rows) print(format_operator_timing(t));
  });
  if (prints && json) print(operator_bench_json(head, timings) + "\n");
  return 0;
}

}  // namespace

void add_bench_command(Command app) {
  struct Options {
    OperatorBenchOptions operators;
    DeviceChoice device = DeviceChoice::kCuda;
    int64_t num_tokens = 0;
    ConfigArguments config;
    StepBenchOptions step;
    std::string tune;
    bool json = false;
    bool skip_self_check = false;
  };
  auto options = std::make_shared<Options>();
  const Command command = app.command("bench", "Measure speed: of every operator, or of a training step");
  const Option op =
      command.option("--op", options->operators.ops, "only operators whose names begin so; may be repeated")
          .one_at_a_time();
  const Option device = command.choice("--device", options->device, {DeviceChoice::kCuda, DeviceChoice::kCpu},
                                       "cuda, in bf16, or cpu, in fp32 and smaller sizes; default cuda");
  const Option tokens = command
                            .option("--tokens", options->num_tokens,
                                    "tokens in the batch, up to 4096 per sequence; 32768 on a GPU, 2048 on a CPU")
                            .whole(64, 1 << 20);
  command.flag("--json", options->json, "print one JSON object");
  command.runs([options] {
    const Device device = options->device == DeviceChoice::kCpu ? Device::kCpu : Device::kCuda;
    return time_operators(options->operators, device, options->num_tokens, options->json);
  });
  const Command step = command.command("step", "Time of a training step on random tokens");
  for (const Option& of_operators : {op, device, tokens}) step.excludes(of_operators);
  add_config(step, options->config, "YAML config; needs no data").required();
  step.option("--steps", options->step.steps, "steps to measure").whole(1, 1 << 20);
  step.option("--warmup", options->step.warmup_steps, "steps before them").whole(0, 1 << 20);
  step.option("--tune", options->tune,
              "then choose by measurement the algorithms of products that this table lacks, and time again");
  step.flag("--json", options->json, "print one JSON object");
  step.flag("--skip-selfcheck", options->skip_self_check, "do not hold the GPU's kernels to the CPU's first");
  step.runs([options] {
    RunConfig config = options->config.read();
    config.run.steps = options->step.total_steps();
    check_model_config(config);
    check<ConfigError>(config.train.seq_length > 0, options->config.path,
                       ": train.seq_length is not set, but a benchmark needs the shape of a batch");
    use_default_threads();
    const std::unique_ptr<Machine> machine = open_machine(config);
    check_config_for_ranks(config, machine->world->size());
    check<ConfigError>(options->tune.empty() || (machine->ctx.on_cuda() && machine->world->size() == 1),
                       "--tune chooses algorithms for one GPU, and one process does it");
    const ProcessMesh mesh(std::move(machine->world), config.parallel.expert, config.model.num_experts,
                           config.parallel.context);
    std::string chosen;
    config = with_recompute_that_fits(config, mesh, machine->ctx, available_memory(machine->ctx, mesh), chosen);
    if (mesh.rank() == 0 && !chosen.empty()) print_note(chosen);
    start_on_device(machine->ctx, mesh, config, options->skip_self_check ? SelfCheck::kNo : SelfCheck::kYes, stderr);
    auto time_steps = [&] {
      const StepBenchResult result = bench_step(machine->ctx, mesh, config, options->step);
      if (mesh.rank() != 0) return;
      std::printf("%s", options->json ? (step_bench_json(result, mesh.size()) + "\n").c_str()
                                      : format_step_bench(result, mesh.size()).c_str());
    };
    time_steps();
    if (options->tune.empty()) return 0;
    tune_products(machine->ctx, options->tune);
    time_steps();
    return 0;
  });
}

}  // namespace braid
