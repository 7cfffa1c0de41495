#include <memory>

#include "kernels/core/nearest_words.h"
#include "parallel/failpoint.h"
#include "parallel/mpi_session.h"
#include "trainer/cli/arguments.h"
#include "trainer/cli/commands.h"
#include "trainer/cli/print.h"
#include "trainer/cli/session.h"
#include "trainer/run/agreement.h"
#include "trainer/run/start_watch.h"
#include "trainer/run/stop_signal.h"
#include "trainer/step_memory.h"
#include "trainer/training.h"

namespace braid {
namespace {

// Before the ranks have met. What is wrong with a config is for them to say together.
double hang_timeout_of(const ConfigArguments& config) {
  try {
    return config.read().run.hang_timeout;
  } catch (const Error&) {
    return RunConfig().run.hang_timeout;
  }
}

}  // namespace

void add_train_command(Command app) {
  struct Options {
    ConfigArguments config;
    ResumeFrom resume;
    std::string resume_mode;
    bool skip_self_check = false, quiet = false, json = false;
  };
  auto options = std::make_shared<Options>();
  const Command command = app.command("train", "Train a model. Several ranks: mpirun -n W braid train CONFIG");
  add_config(command, options->config).required();
  command
      .flag("--resume{newest}", options->resume_mode,
            "go on from the newest checkpoint of run.dir, or from the one before it if that is damaged; --resume=auto: "
            "start if "
            "there is nothing yet; --resume=strict: from the newest and no other")
      .one_of({"newest", "auto", "strict"});
  command.option("--resume-from", options->resume.checkpoint, "go on from this checkpoint folder");
  command
      .option("--override", options->resume.overrides,
              "with --resume: this key may differ from the checkpoint's: optimizer.lr, schedule.*, "
              "train.global_batch_size, train.micro_batch_size, balance.*")
      .value_name("KEY")
      .one_at_a_time();
  command.flag("--skip-selfcheck", options->skip_self_check, "do not hold the GPU's kernels to the CPU's first");
  command.flag("--quiet", options->quiet, "say nothing but warnings and errors; the files of the run folder tell");
  command.flag("--json", options->json, "one JSON object per line instead of text");
  command.runs([options] {
    end_on_stop_signal(world_rank() == 0);
    if (MpiSession::launched_by_mpi()) begin_start_watch(hang_timeout_of(options->config));
    fault_point("init");
    ResumeFrom& resume = options->resume;
    resume.mode = options->resume_mode == "auto"                                   ? ResumeMode::kAuto
                  : options->resume_mode == "strict"                               ? ResumeMode::kStrict
                  : options->resume_mode == "newest" || !resume.checkpoint.empty() ? ResumeMode::kNewest
                                                                                   : ResumeMode::kNo;
    now_meets();
    std::unique_ptr<Communicator> world = open_world();
    Context cpu = Context::cpu();
    check_agreement(cpu, *world,
                    {{"--resume", name_of_enum(resume.mode)},
                     {"--resume-from", resume.checkpoint},
                     {"--override", joined(resume.overrides, " ")},
                     {"--skip-selfcheck", options->skip_self_check ? "given" : "not given"}});
    const RunConfig config = agree_on_config(cpu, *world, [&] {
      RunConfig read = options->config.read();
      check_config(read);
      check_config_for_ranks(read, world->size());
      return read;
    });
    use_default_threads();
    const std::unique_ptr<Machine> machine = open_machine(config, std::move(world));
    const ProcessMesh mesh(std::move(machine->world), config.parallel.expert, config.model.num_experts,
                           config.parallel.context);
    std::string chosen;
    const RunConfig fitting =
        with_recompute_that_fits(config, mesh, machine->ctx, available_memory(machine->ctx, mesh), chosen);
    if (mesh.rank() == 0 && !chosen.empty()) print_note(chosen);
    const SelfCheck self_check = options->skip_self_check ? SelfCheck::kNo : SelfCheck::kYes;
    const ConsoleStyle style = options->quiet  ? ConsoleStyle::kQuiet
                               : options->json ? ConsoleStyle::kJson
                                               : ConsoleStyle::kText;
    return static_cast<int>(run_training(machine->ctx, mesh, fitting, resume, self_check, style));
  });
}

}  // namespace braid
