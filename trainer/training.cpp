#include "trainer/training.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>

#include "data/batch_stream.h"
#include "kernels/build_info.h"
#include "kernels/core/durable_file.h"
#include "kernels/core/sha256.h"
#include "kernels/matmul_algorithms.h"
#include "parallel/rank_text.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/checkpoint/device_slices.h"
#include "trainer/config/config_reader.h"
#include "trainer/config/config_visit.h"
#include "trainer/datasets.h"
#include "trainer/evaluation.h"
#include "trainer/metrics/console.h"
#include "trainer/metrics/expert_loads.h"
#include "trainer/metrics/metrics_writer.h"
#include "trainer/metrics/run_events.h"
#include "trainer/metrics/tensorboard_writer.h"
#include "trainer/run/agreement.h"
#include "trainer/run/run_folder.h"
#include "trainer/run/stop_signal.h"
#include "trainer/run_tokenizer.h"
#include "trainer/train_step.h"
#include "trainer/training_state.h"

namespace braid {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Does any rank see the condition? The same answer on every rank.
bool any_rank(Context& ctx, Communicator& world, bool condition) {
  int64_t flag = condition;
  world.all_reduce(ctx, Tensor::of(&flag, {1}), ReduceOp::kMax);
  return flag != 0;
}

BatchPlan batch_plan(const RunConfig& config, const ProcessMesh& mesh) {
  BatchPlan plan;
  plan.global_batch_size = config.train.global_batch_size;
  plan.micro_batch_size = config.train.micro_batch_size;
  plan.num_ranks = mesh.size();
  plan.rank = mesh.rank();
  plan.seed = static_cast<uint64_t>(config.train.seed);
  for (const SourceConfig& source : config.data.sources) plan.weights.push_back(source.weight);
  plan.prefetch_steps = config.data.prefetch_steps;
  return plan;
}

// As the step lines show losses.
std::string four_decimals(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.4f", value);
  return text;
}

// "layer_00" … and "mtp": what metrics call the layers with experts.
std::vector<std::string> moe_layer_names(size_t count, bool with_mtp) {
  std::vector<std::string> names;
  for (size_t layer = 0; layer < count; ++layer)
    names.push_back(with_mtp && layer + 1 == count ? "mtp" : concat("layer_", layer < 10 ? "0" : "", layer));
  return names;
}

MetricsLine training_line(int64_t step, int64_t tokens, const StepResult& r, const RunConfig& config, double seconds,
                          double wait_seconds) {
  MetricsLine line;
  line.set("step", step);
  line.set("tokens", tokens);
  line.set("train/loss", r.loss_lm + config.mtp.loss_weight * r.loss_mtp + config.balance.loss_weight * r.balance.loss +
                             config.balance.z_loss_weight * r.balance.z_loss);
  line.set("train/loss_lm", r.loss_lm);
  line.set("train/loss_mtp", r.loss_mtp);
  line.set("train/loss_balance", r.balance.loss);
  line.set("train/loss_router_z", r.balance.z_loss);
  line.set("train/grad_norm", r.grad_norm);
  line.set("train/lr", r.lr);
  line.set("perf/tokens_per_s", double(r.tokens) / seconds);
  line.set("perf/step_ms", seconds * 1e3);
  line.set("perf/data_wait_ms", wait_seconds * 1e3);
  const std::vector<std::string> layers = moe_layer_names(r.balance.loads.size(), config.mtp.on());
  for (size_t layer = 0; layer < layers.size(); ++layer) {
    const std::string prefix = "moe/" + layers[layer] + "/";
    line.set(prefix + "load_max_over_mean", r.balance.loads[layer].max_over_mean);
    line.set(prefix + "dead_experts", r.balance.loads[layer].dead);
  }
  for (const NamedNumber& number : r.numbers) line.set(number.name, number.value);
  return line;
}

ExpertLoads expert_loads(int64_t step, const StepResult& r, const RunConfig& config) {
  ExpertLoads loads{step, moe_layer_names(r.balance.loads.size(), config.mtp.on()), {}};
  for (const ExpertLoad& load : r.balance.loads) loads.counts.push_back(load.counts);
  return loads;
}

// What stands between the two digests of the training data: of its documents, and of its tokens. Checkpoints of earlier
// builds hold the first alone.
constexpr const char* kTokensInDigest = ", tokens ";

bool is_same_data(const std::string& stored, const std::string& now) {
  const bool whole = stored.find(kTokensInDigest) != stored.npos;
  return stored == (whole ? now : now.substr(0, now.find(kTokensInDigest)));
}

// Where the device is described: JSON is for programs, which read objects alone from stdout.
std::FILE* log_of(ConsoleStyle style) {
  if (style == ConsoleStyle::kQuiet) return nullptr;
  return style == ConsoleStyle::kJson ? stderr : stdout;
}

// What rank 0 does beside computing: run folder, files, console. The other ranks have none.
struct Front {
  Front(const RunConfig& config, ConsoleStyle style) : folder(config.run.dir), console(stdout, style) {}
  RunFolder folder;
  Console console;
  std::unique_ptr<MetricsWriter> metrics;
  std::unique_ptr<ExpertLoadsWriter> loads;
  std::unique_ptr<TensorBoardWriter> tensorboard;  // if log.tensorboard

  // In every file. One that takes no more is given up, and that is said once.
  void write(const MetricsLine& line, const ExpertLoads* expert_loads) {
    bool ok = !tensorboard || tensorboard->write(line);
    if (expert_loads && tensorboard)
      for (size_t layer = 0; ok && layer < expert_loads->layers.size(); ++layer)
        ok = tensorboard->write_histogram(expert_loads->step, "moe/" + expert_loads->layers[layer] + "/expert_load",
                                          expert_loads->counts[layer]);
    if (!ok) {
      console.warning(tensorboard->path() + " cannot be written any more; the other files go on");
      tensorboard.reset();
    }
    if (expert_loads && loads && !loads->write(*expert_loads)) {
      console.warning(folder.path("expert_loads.jsonl") + " cannot be written any more; the other files go on");
      loads.reset();
    }
  }
};

// A run that is made longer or shorter has another learning rate from here on wherever the schedule ends with the run.
std::vector<std::string> what_steps_change(const RunConfig& before, const RunConfig& after, int64_t done) {
  const auto at = [](const RunConfig& c, int64_t step) {
    return c.optimizer.lr * lr_factor(c.schedule, step, c.run.steps);
  };
  const int64_t next = done + 1;
  const double now = at(after, next), planned = at(before, next);
  const std::string steps = concat("run.steps ", before.run.steps, " -> ", after.run.steps, ": ");
  if (done >= after.run.steps) return {};
  const auto number = [](double lr) {
    char text[32];
    std::snprintf(text, sizeof text, "%.3e", lr);
    return std::string(text);
  };
  const std::string last = concat(" and ends at ", number(at(after, after.run.steps)));
  const double reached = done > 0 ? at(before, done) : now;
  if (next <= before.run.steps && now == planned)
    return {concat("note: ", steps, "the learning rate of step ", next, " stays ", number(now), last)};
  return {concat("note: ", steps, "the learning rate was ", number(reached), " at step ", done, ", is ", number(now),
                 " at step ", next, last,
                 now > reached && next > after.schedule.warmup_steps
                     ? "; it rises, as the schedule ends with the run: schedule.kind wsd keeps it level until the end"
                     : "")};
}

class TrainingRun {
 public:
  TrainingRun(Context& ctx, const ProcessMesh& mesh, const RunConfig& config, const ResumeFrom& resume,
              SelfCheck self_check, ConsoleStyle style)
      : ctx_(ctx), mesh_(mesh), config_(config), state_(config, mesh) {
    open_run_folder(resume, style);
    open_data();
    start_on_device(ctx, mesh, config, self_check, log_of(style));
    const std::string ranks = table_of_ranks(ctx, mesh.world(), device_text(ctx));
    say("ranks:\n" + ranks);
    state_.allocate(ctx);
    if (resume.resume) load(resume);
    else if (!config.init.from.empty()) load_initial_weights();
    else state_.initialize(ctx);
    if (front_) {
      front_->metrics = std::make_unique<MetricsWriter>(config.run.dir, step_);
      front_->loads = std::make_unique<ExpertLoadsWriter>(config.run.dir, step_);
      if (config.log.tensorboard)
        front_->tensorboard = std::make_unique<TensorBoardWriter>(front_->folder.path("tensorboard"), step_);
      announce();
    }
  }

  ExitCode run() {
    BatchStream stream(train_data_, batch_plan(config_, mesh_), step_);
    StopSignal signals;
    double waited = 0;
    const int64_t first_step = step_;
    while (step_ < config_.run.steps) {
      const auto start = Clock::now();
      const StepBatches batches = stream.next_step();
      const StepResult result = train_step(ctx_, state_, batches, mesh_, config_, step_ + 1);
      step_ += 1;
      tokens_ += result.tokens;
      report(result, seconds_since(start), stream.wait_seconds() - waited);
      waited = stream.wait_seconds();
      if (step_ == first_step + 1) say_what_is_not_tuned();

      const bool stop = any_rank(ctx_, mesh_.world(), StopSignal::received() != 0);
      if (!stop && is_due(config_.eval.interval_steps)) evaluate_all();
      if (stop || is_due_or_last(config_.checkpoint.interval_steps)) save();
      if (stop && step_ < config_.run.steps) {
        say(concat("stopped on request after step ", step_, "; go on with --resume"));
        note("stopped", "on request");
        return ExitCode::kStoppedOnRequest;
      }
    }
    note("finished", concat("after ", step_, " steps"));
    return ExitCode::kDone;
  }

 private:
  bool is_due_or_last(int64_t interval) const {
    return step_ == config_.run.steps || (interval > 0 && step_ % interval == 0);
  }
  bool is_due(int64_t interval) const { return interval > 0 && is_due_or_last(interval); }

  void say(const std::string& text) {
    if (front_) front_->console.line(text);
  }

  // In the run folder's list of events.
  void note(const std::string& event, const std::string& text) {
    if (front_) append_run_event(config_.run.dir, {step_, event, text, ""});
  }

  // The same for two runs exactly if they train on the same rows in the same order.
  std::string data_order_digest() const {
    const TrainSection& train = config_.train;
    std::string text =
        concat(data_digest_, " seed ", train.seed, " batch ", train.global_batch_size, " x ", train.seq_length);
    for (const SourceConfig& source : config_.data.sources) text += " weight " + yaml_text(source.weight);
    return sha256(text);
  }

  std::string checkpoint_folder() const { return config_.run.dir + "/checkpoints"; }

  void open_run_folder(const ResumeFrom& resume, ConsoleStyle style) {
    from_first_rank(ctx_, mesh_.world(), [&] {
      front_.emplace(config_, style);
      check<RunFolderError>(resume.resume || !front_->folder.has_run(), config_.run.dir,
                            ": the folder already holds a run; go on with --resume or choose another run.dir");
      return std::string();
    });
    check_folder_is_shared(ctx_, mesh_.world(), config_.run.dir);
    from_first_rank(ctx_, mesh_.world(), [&] {
      const auto on_disk = resume.resume ? ShardsOnDisk::kKeep : ShardsOnDisk::kCheck;
      if (!resume.resume) check_no_leak(config_);
      if (const int64_t again = prepare_shards(config_.data, config_.run.dir, on_disk); again > 0)
        say(concat(again, " text files were met twice, by a link or a second name, and are taken once"));
      return std::string();
    });
  }

  // The same tokens on every rank.
  void open_data() {
    std::vector<Fact> contents;
    all_or_none(ctx_, mesh_.world(), [&] {
      train_data_ = open_datasets(config_, Split::kTrain);
      validation_data_ = open_datasets(config_, Split::kValidation);
      data_digest_ = data_digest(config_, train_data_);
      contents.push_back({"the digest of the documents of data.sources", data_digest_});
      std::string tokens;
      for (const TokenDataset& data : train_data_) {
        contents.push_back({"the digest of the tokens of data source " + data.name(), contents_digest(data)});
        tokens += contents.back().value;
      }
      data_digest_ += kTokensInDigest + sha256(tokens);
      return std::string();
    });
    check_agreement(ctx_, mesh_.world(), contents);
  }

  // Tells what is about to run, on the console and in the run folder; on resume only once the checkpoint was accepted.
  void announce() {
    int64_t parameters = 0;
    const auto table = parameter_table(config_.model, config_.mtp);
    for (const Parameter& p : table) parameters += p.shape.numel();
    write_file_atomically(front_->folder.path("config.resolved.yaml"), to_yaml(config_));
    write_file_atomically(front_->folder.path("parameters.txt"), format_parameter_table(table));
    write_file_atomically(front_->folder.path("build.txt"), std::string(kBuildId) + "\n");
    store_run_tokenizer(train_data_, config_.run.dir);
    write_file_atomically(front_->folder.path("data_order.txt"), data_order_digest() + "\n");
    say(concat("braid ", kBuildId));
    say("resolved config (also in " + front_->folder.path("config.resolved.yaml") + "):");
    say(to_yaml(config_));
    say(concat("parameters: ", table.size(), " tensors, listed in ", front_->folder.path("parameters.txt")));
    say(concat("ranks ", mesh_.size(), ", expert parallel ", mesh_.expert().size(), ", ", parameters, " parameters, ",
               state_.memory().total_bytes() >> 20, " MiB per rank planned, device ", ctx_.on_cuda() ? "cuda" : "cpu",
               ", ", name_of_enum(config_.precision)));
    for (const TokenDataset& data : train_data_)
      say(concat("data ", data.name(), ": ", data.num_tokens(), " training tokens in ", data.size(), " rows"));
    const std::string where =
        concat("on ", mesh_.size(), mesh_.size() == 1 ? " rank" : " ranks", ", expert parallel ", mesh_.expert().size(),
               ", ", ctx_.on_cuda() ? "cuda" : "cpu", ", braid ", kBuildId);
    if (step_ > 0) say(concat("resumed after step ", step_, " (", tokens_, " tokens)"));
    note(step_ > 0 ? "resumed" : "started", where);
    for (const ConfigDifference& d : changed_) {
      if (d.key != "run.steps") say(concat("note: ", d.key, " was ", d.before, " and is ", d.after));
      note("changed", concat(d.key, " from ", d.before, " to ", d.after));
    }
    for (const std::string& text : schedule_notes_) say(text);
  }

  void load(const ResumeFrom& resume) {
    const std::string path = from_first_rank(ctx_, mesh_.world(), [&] {
      if (!resume.checkpoint.empty()) return resume.checkpoint;
      const auto checkpoints = list_checkpoints(checkpoint_folder());
      check<CheckpointError>(!checkpoints.empty(), checkpoint_folder(), ": no checkpoint to resume from");
      return checkpoints.back().path;
    });
    const CheckpointReader reader(ctx_, mesh_.world(), path);
    const CheckpointInfo& info = reader.info();
    RunConfig stored;
    all_or_none(ctx_, mesh_.world(), [&] {
      check<CheckpointError>(info.step > 0, path,
                             ": holds weights alone, no state of a run to go on with: start a run with init.from");
      stored = read_config_text(info.config_yaml, path);
      check_resume_config(stored, config_, path);
      check<CheckpointError>(is_same_data(info.data_digest, data_digest_), path,
                             ": the run was trained on other data (or other shards of it) than data.sources now names");
      check<CheckpointError>(info.step <= config_.run.steps, path, ": is after step ", info.step, ", run.steps is ",
                             config_.run.steps);
      return std::string();
    });
    state_.load(ctx_, reader);
    step_ = info.step;
    tokens_ = info.tokens;
    for (const ConfigDifference& d : compare_configs(stored, config_))
      if (d.key != "run.dir") changed_.push_back(d);
    if (stored.run.steps != config_.run.steps) schedule_notes_ = what_steps_change(stored, config_, step_);
  }

  // Nothing but the weights of that checkpoint is used. Where its model computed otherwise with weights of the same
  // shapes, that may be a mistake, so it is said.
  void load_initial_weights() {
    const CheckpointReader source = open_checkpoint(ctx_, mesh_.world(), config_.init.from);
    state_.load_weights(ctx_, source);
    say(concat("weights from ", source.path(), ", after step ", source.info().step));
    const RunConfig stored = read_config_text(source.info().config_yaml, source.path());
    for (const ConfigDifference& d : compare_configs(stored, config_))
      if (d.key.starts_with("model.")) say(concat("note: ", d.key, " was ", d.before, " there and is ", d.after));
  }

  void say_what_is_not_tuned() {
    const AlgorithmCounts products = matmul_algorithm_counts(ctx_);
    if (products.proposed > 0)
      say(concat("note: ", products.proposed, " of ", products.stored + products.proposed, " large products have no ",
                 "stored algorithm for this GPU and take the one that cuBLASLt proposes; braid bench step --tune"));
  }

  void report(const StepResult& result, double seconds, double wait_seconds) {
    if (!front_) return;
    const MetricsLine line = training_line(step_, tokens_, result, config_, seconds, wait_seconds);
    front_->metrics->write_train(line);
    const bool with_loads = ExpertLoadsWriter::is_due(step_, config_.run.steps);
    const ExpertLoads loads = with_loads ? expert_loads(step_, result, config_) : ExpertLoads();
    front_->write(line, with_loads ? &loads : nullptr);
    front_->console.metrics(line.to_json());
    ConsoleStep shown;
    shown.step = step_;
    shown.run_steps = config_.run.steps;
    shown.tokens = tokens_;
    shown.loss_lm = result.loss_lm;
    shown.loss_mtp = result.loss_mtp;
    shown.loss_balance = result.balance.loss;
    shown.grad_norm = result.grad_norm;
    shown.lr = result.lr;
    shown.tokens_per_s = double(result.tokens) / seconds;
    shown.mtp = config_.mtp.on();
    front_->console.step(shown, is_due_or_last(config_.log.interval_steps));
  }

  void evaluate_all() {
    std::vector<Evaluation> evaluations;
    for (const TokenDataset& data : validation_data_) {
      evaluations.push_back(
          evaluate(ctx_, state_.model, mesh_, data, config_.train.micro_batch_size, config_.eval.sequences));
      const Evaluation& e = evaluations.back();
      if (e.targets > 0)
        say(concat("step ", step_, ": held-out loss of ", e.name, " ", four_decimals(e.loss), " (unigram entropy ",
                   four_decimals(e.unigram_entropy), ")"));
    }
    if (!front_) return;
    const MetricsLine line = validation_line(step_, evaluations);
    front_->metrics->write_validation(line);
    front_->write(line, nullptr);
    front_->console.metrics(line.to_json());
  }

  void save() {
    CheckpointInfo info;
    info.step = step_;
    info.tokens = tokens_;
    info.config_yaml = to_yaml(config_);
    info.build_id = kBuildId;
    info.data_digest = data_digest_;
    info.parameter_table = format_parameter_table(parameter_table(config_.model, config_.mtp));
    info.num_ranks = mesh_.size();
    info.expert_parallel = mesh_.expert().size();
    const HostSlices host(ctx_, state_.slices());
    const std::string path = save_checkpoint(ctx_, mesh_.world(), checkpoint_folder(), info, host.slices());
    say("saved " + path);
    if (front_) prune_checkpoints(checkpoint_folder(), config_.checkpoint.keep);
  }

  Context& ctx_;
  const ProcessMesh& mesh_;
  const RunConfig& config_;
  TrainingState state_;
  std::optional<Front> front_;
  std::vector<TokenDataset> train_data_, validation_data_;
  std::string data_digest_;
  std::vector<ConfigDifference> changed_;  // since the checkpoint that a resume goes on from
  std::vector<std::string> schedule_notes_;
  int64_t step_ = 0, tokens_ = 0;
};

}  // namespace

void check_resume_config(const RunConfig& stored, const RunConfig& config, const std::string& checkpoint_path) {
  static const char* const kFreePrefixes[] = {
      "run.",        "device", "allow_slow",  "parallel.",           "train.micro_batch_size",
      "eval.",       "log.",   "checkpoint.", "data.prefetch_steps",
      "init.from",      // the weights that came from there are in the checkpoint
      "data.sources"};  // the data itself is compared by its digest
  std::string differing;
  int64_t count = 0;
  for (const ConfigDifference& d : compare_configs(stored, config)) {
    const bool is_free = std::any_of(std::begin(kFreePrefixes), std::end(kFreePrefixes),
                                     [&](const char* prefix) { return d.key.rfind(prefix, 0) == 0; });
    if (is_free) continue;
    if (++count <= 3) differing += concat(count > 1 ? ", " : "", d.key, " was ", d.before, " and is ", d.after);
  }
  check<CheckpointError>(count == 0, checkpoint_path, ": made with another config: ", differing,
                         count > 3 ? ", …" : "");
}

ExitCode run_training(Context& ctx, const ProcessMesh& mesh, const RunConfig& config, const ResumeFrom& resume,
                      SelfCheck self_check, ConsoleStyle console) {
  return TrainingRun(ctx, mesh, config, resume, self_check, console).run();
}

}  // namespace braid
