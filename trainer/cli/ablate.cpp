#include <fcntl.h>
#include <omp.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>

#include "kernels/core/context.h"
#include "kernels/core/durable_file.h"
#include "kernels/core/error.h"
#include "model/parameter_layout.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/cli/commands.h"
#include "trainer/config/config_reader.h"
#include "trainer/report/report.h"
#include "trainer/report/study.h"
#include "trainer/resume_rules.h"

namespace braid {
namespace {

namespace fs = std::filesystem;

struct Options {
  std::string study, dir, slurm;
  std::vector<std::string> overrides;
  int64_t jobs = 1, only = -1;
};

std::string this_program() { return fs::read_symlink("/proc/self/exe").string(); }

std::string checkpoints_of(const StudyRun& run) { return run.dir + "/checkpoints"; }

bool is_finished(const StudyRun& run) {
  std::error_code error;
  return fs::exists(run.dir + "/metrics.jsonl", error) && read_run(run.dir).finished();
}

std::vector<std::string> command_of(const StudyConfig& study, const StudyRun& run, bool resume) {
  std::vector<std::string> words = {this_program(), "train", study.config};
  words.insert(words.end(), run.overrides.begin(), run.overrides.end());
  if (resume) words.push_back("--resume");
  return words;
}

// ---- Runs on this machine

// One that was killed before its first checkpoint, or saves weights alone, starts again; what it wrote is of no use.
bool can_go_on(const StudyRun& run, const RunConfig& config) {
  return config.checkpoint.contents != CheckpointContents::kWeights && !list_checkpoints(checkpoints_of(run)).empty();
}

// Of keys by which a finished run is the same, and of where the same data lies.
bool is_free(const std::string& key) {
  const bool is_source = key.starts_with("data.sources[") || key.starts_with("data.validation_sets[");
  if (is_source) return key.ends_with(".dataset") || key.ends_with(".shards") || key.ends_with(".text");
  return leaves_steps_alone(key) && key != "run.steps";
}

// A run that is there already is not taken for one of the study as it is now, if that would compute another.
void check_is_of_study(const StudyConfig& study, const StudyRun& run) {
  const std::string stored = run.dir + "/config.resolved.yaml";
  std::error_code error;
  if (!fs::exists(stored, error)) return;
  const RunConfig config = read_config(study.config, run.overrides);
  if (!is_finished(run) && !can_go_on(run, config)) return;
  for (const ConfigDifference& d : compare_configs(read_config(stored, {}), config))
    check<ConfigError>(is_free(d.key), run.dir, ": holds a run of another study: ", d.key, " was ", d.before,
                       " and is ", d.after, "; choose another --dir, or remove what is there");
}

bool prepare(const StudyConfig& study, const StudyRun& run) {
  if (can_go_on(run, read_config(study.config, run.overrides))) return true;
  for (const char* name :
       {"metrics.jsonl", "metrics.csv", "expert_loads.jsonl", "events.jsonl", "tensorboard", "checkpoints"})
    fs::remove_all(run.dir + "/" + name);
  create_folder(run.dir);
  return false;
}

pid_t start(const StudyConfig& study, const StudyRun& run, int64_t slot, int64_t num_gpus, int threads) {
  std::vector<std::string> words = command_of(study, run, prepare(study, run));
  const std::string log = run.dir + "/console.log";
  const pid_t child = fork();
  check<EnvironmentError>(child >= 0, "no process can be started: ", reason(errno));
  if (child > 0) return child;
  const int out = ::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (out >= 0) dup2(out, STDOUT_FILENO), dup2(out, STDERR_FILENO);
  if (num_gpus > 1)
    setenv("CUDA_VISIBLE_DEVICES", gpu_of_slot(slot, num_gpus, std::getenv("CUDA_VISIBLE_DEVICES")).c_str(), 1);
  setenv("OMP_NUM_THREADS", std::to_string(threads).c_str(), 0);
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  execv(argv[0], argv.data());
  _exit(127);
}

volatile std::sig_atomic_t interrupted = 0;

int exit_code_of(int status) { return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status); }

// Runs what is not finished, `jobs` at a time. Returns the first exit code that is not 0, after all the others had
// their turn; an interrupt is passed on, and nothing new is started after it.
int run_all(const StudyConfig& study, const std::vector<StudyRun>& runs, int64_t jobs) {
  struct sigaction on_signal = {};
  on_signal.sa_handler = [](int signal) { interrupted = signal; };
  for (const int signal : {SIGINT, SIGTERM, SIGUSR1}) sigaction(signal, &on_signal, nullptr);

  const int64_t num_gpus = Context::num_gpus();
  const int threads = std::max<int>(1, omp_get_num_procs() / static_cast<int>(jobs));
  struct Job {
    size_t run;
    int64_t slot;
  };
  std::map<pid_t, Job> running;
  std::vector<bool> slot_taken(static_cast<size_t>(jobs), false);
  size_t next = 0;
  int result = 0;
  bool passed_on = false;
  while (next < runs.size() || !running.empty()) {
    const bool start_more = !interrupted && static_cast<int64_t>(running.size()) < jobs && next < runs.size();
    if (start_more) {
      const StudyRun& run = runs[next];
      if (is_finished(run)) {
        std::printf("[%zu/%zu] %s seed %lld: done before\n", next + 1, runs.size(), run.variant.c_str(),
                    (long long)run.seed);
      } else {
        const auto slot = std::find(slot_taken.begin(), slot_taken.end(), false) - slot_taken.begin();
        slot_taken[slot] = true;
        std::printf("[%zu/%zu] %s seed %lld: %s/console.log\n", next + 1, runs.size(), run.variant.c_str(),
                    (long long)run.seed, run.dir.c_str());
        running[start(study, run, slot, num_gpus, threads)] = {next, slot};
      }
      std::fflush(stdout);
      ++next;
      continue;
    }
    if (running.empty()) break;
    int status = 0;
    const pid_t ended = waitpid(-1, &status, 0);
    if (ended < 0 && errno == EINTR) {
      if (interrupted && !passed_on)
        for (const auto& [child, job] : running) kill(child, SIGTERM);
      passed_on = interrupted != 0;
      continue;
    }
    const auto job = running.find(ended);
    if (job == running.end()) continue;
    const int code = exit_code_of(status);
    const StudyRun& run = runs[job->second.run];
    if (code != 0)
      std::fprintf(stderr, "%s seed %lld: exit code %d, see %s/console.log\n", run.variant.c_str(), (long long)run.seed,
                   code, run.dir.c_str());
    if (code != 0 && result == 0) result = code;
    slot_taken[job->second.slot] = false;
    running.erase(job);
  }
  if (interrupted) return static_cast<int>(ExitCode::kStoppedOnRequest);
  return result;
}

// ---- A Slurm array

std::string quoted(const std::string& word) {
  std::string out = "'";
  for (const char c : word) out += c == '\'' ? "'\\''" : std::string(1, c);
  return out + "'";
}

std::string slurm_script(const Options& options, const std::string& name, const std::string& dir, size_t num_runs) {
  std::vector<std::string> words = {this_program(), "ablate", options.study};
  words.insert(words.end(), options.overrides.begin(), options.overrides.end());
  std::string command;
  for (const std::string& word : words) command += quoted(word) + " ";
  command += concat("--dir ", quoted(dir), " --only \"$SLURM_ARRAY_TASK_ID\"");
  return concat("#!/bin/bash\n# Study ", name, ": one task of the array per run. A run that is stopped goes on ",
                "where it was: exit code 75 asks for its task again.\n#SBATCH --job-name=", name,
                "\n#SBATCH --array=0-", num_runs - 1, options.jobs > 1 ? concat("%", options.jobs) : "",
                "\n#SBATCH --ntasks=1\n#SBATCH --requeue\n#SBATCH --signal=TERM@300\n#SBATCH --output=", name,
                "-%A_%a.log\ncd ", quoted(fs::current_path().string()), "\nsrun ", command, R"sh(
code=$?
if [ $code = 75 ] && scontrol show job "$SLURM_JOB_ID" | grep -q 'JobState=RUNNING'; then  # not what was cancelled
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
)sh");
}

// ---- What came out

// Absolute value over the zero-centred norms, whose stored weight is the distance from 1; NaN without a checkpoint.
double largest_norm_weight(const StudyRun& run, const RunConfig& config) {
  const auto checkpoints = list_checkpoints(checkpoints_of(run));
  if (checkpoints.empty()) return std::nan("");
  const CheckpointReader reader(checkpoints.back().path);
  double largest = 0;
  for (const Parameter& p : parameter_table(config.model, config.mtp)) {
    if (p.decay != Decay::kNorm && p.decay != Decay::kQkNorm) continue;
    std::vector<double> weights(static_cast<size_t>(p.shape.numel()));
    reader.read_weights(p, 0, p.shape.numel(), Tensor::of(weights.data(), {p.shape.numel()}));
    for (const double w : weights) largest = std::max(largest, std::abs(w));
  }
  return largest;
}

int ablate(const Options& options) {
  const StudyConfig study = read_study(options.study, options.overrides);
  const std::string name = fs::path(options.study).stem().string();
  const std::string dir = options.dir.empty() ? concat("runs/ablations/", name) : options.dir;
  const std::vector<StudyRun> runs = expand_study(study, dir);
  for (const StudyRun& run : runs)
    check_config(read_config(study.config, run.overrides));  // before the first one starts
  if (!options.slurm.empty()) {
    write_output(options.slurm, slurm_script(options, name, dir, runs.size()));
    std::printf("wrote %s: an array of %zu runs; sbatch it here, then this command without --slurm makes the report\n",
                options.slurm.c_str(), runs.size());
    return 0;
  }
  create_folder(dir);
  if (options.only >= 0) {
    check<ConfigError>(options.only < std::ssize(runs), "--only is ", options.only, ", but the study has runs 0 to ",
                       runs.size() - 1);
    check_is_of_study(study, runs[static_cast<size_t>(options.only)]);
    return run_all(study, {runs[static_cast<size_t>(options.only)]}, 1);
  }
  for (const StudyRun& run : runs) check_is_of_study(study, run);
  const int code = run_all(study, runs, options.jobs);

  std::vector<StudyOutcome> outcomes;
  for (const StudyRun& run : runs) {
    if (!is_finished(run)) continue;
    RunData data = read_run(run.dir);
    const double norm = largest_norm_weight(run, *data.config);
    data.name = concat(run.variant, " seed ", run.seed);
    outcomes.push_back({run, std::move(data), norm});
  }
  if (outcomes.empty() || interrupted) {
    std::printf("%zu of %zu runs are finished; the same command goes on\n", outcomes.size(), runs.size());
    return code;
  }
  const std::vector<VariantResult> results = compare_study(outcomes);
  std::printf("\n%s", study.question.empty() ? "" : (study.question + "\n").c_str());
  std::fputs(study_table(results).c_str(), stdout);
  std::vector<RunData> data;
  for (const StudyOutcome& outcome : outcomes) data.push_back(outcome.data);
  write_file_atomically(dir + "/report.html",
                        report_as_html(data, "Study " + name, study_table_as_html(study, results)));
  write_file_atomically(dir + "/results.csv", study_results_as_csv(results));
  write_file_atomically(dir + "/steps.csv", report_as_csv(data));
  std::printf("\nwrote %s/report.html, results.csv and steps.csv\n", dir.c_str());
  if (outcomes.size() < runs.size())
    std::printf("%zu of %zu runs are finished; the same command goes on\n", outcomes.size(), runs.size());
  return code;
}

}  // namespace

void add_ablate_command(Command app) {
  auto options = std::make_shared<Options>();
  const Command command = app.command("ablate", "Run a study: every combination of its variants, with every seed");
  command.option("study", options->study, "YAML study, as in configs/ablations").required();
  command.option("overrides", options->overrides, "section.key=value, for all runs");
  command.option("--jobs", options->jobs, "runs at a time, each on a GPU of its own where there are several")
      .whole(1, 1024)
      .show_default();
  command.option("--dir", options->dir, "folder of the runs and the report; default runs/ablations/STUDY");
  const Option slurm =
      command.option("--slurm", options->slurm, "start nothing: write a Slurm script, an array with a task per run");
  command.option("--only", options->only, "do this one of the runs, counted from 0, and compare nothing")
      .whole(0)
      .excludes(slurm);
  command.runs([options] { return ablate(*options); });
}

}  // namespace braid
