#include "trainer/training.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <optional>

#include "data/batch_stream.h"
#include "kernels/build_info.h"
#include "kernels/core/copy.h"
#include "kernels/core/durable_file.h"
#include "kernels/core/sha256.h"
#include "kernels/matmul_algorithms.h"
#include "parallel/failpoint.h"
#include "parallel/progress.h"
#include "parallel/rank_text.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/checkpoint/checkpoint_saver.h"
#include "trainer/checkpoint/resume.h"
#include "trainer/config/config_reader.h"
#include "trainer/config/config_visit.h"
#include "trainer/datasets.h"
#include "trainer/evaluation.h"
#include "trainer/metrics/run_events.h"
#include "trainer/replica_check.h"
#include "trainer/resume_rules.h"
#include "trainer/router_rule.h"
#include "trainer/run/agreement.h"
#include "trainer/run/error_record.h"
#include "trainer/run/slow_rank.h"
#include "trainer/run/start_watch.h"
#include "trainer/run/stop_signal.h"
#include "trainer/run/watchdog.h"
#include "trainer/run_front.h"
#include "trainer/run_tokenizer.h"
#include "trainer/starting_weights.h"
#include "trainer/step_guard.h"
#include "trainer/train_step.h"
#include "trainer/training_state.h"

namespace braid {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Does any rank see the condition? The same answer on every rank.
bool any_rank(Context& ctx, Communicator& world, bool condition) {
  int64_t flag = condition;
  world.all_reduce(ctx, Tensor::of(&flag, {1}), ReduceOp::kMax);
  return flag != 0;
}

// What stands between the two digests of the training data: of its documents, and of its tokens.
constexpr const char* kTokensInDigest = ", tokens ";

// Where the device is described: JSON is for programs, which read objects alone from stdout.
std::FILE* log_of(ConsoleStyle style) {
  if (style == ConsoleStyle::kQuiet) return nullptr;
  return style == ConsoleStyle::kJson ? stderr : stdout;
}

// A run that goes back: to the newest checkpoint up to a step, and on with samples behind all that it has used.
struct Rewind {
  int64_t up_to_step = 0;
  int64_t next_sample = 0;
  int64_t landed = -1, times = 0;  // where the last one ended, and how often in a row they ended there or before
};
constexpr int64_t kRewinds = 3;  // to the same place

class TrainingRun {
 public:
  // What `rewind` says of the run before is taken over, if it goes back.
  TrainingRun(Context& ctx, const ProcessMesh& mesh, const RunConfig& config, const ResumeFrom& resume,
              const std::optional<Rewind>& rewind, SelfCheck self_check, ConsoleStyle style)
      : ctx_(ctx), mesh_(mesh), config_(config), board_(ctx, mesh.world()), state_(config, mesh) {
    overrides_ = resume.overrides;
    open_run_folder(resume, style);
    set_error_folder(config.run.dir);
    end_start_watch();
    if (config.run.hang_timeout > 0)
      watchdog_.emplace(board_, config.run.hang_timeout,
                        mesh.size() > 1 ? Watchdog::Launcher::kIsWatched : Watchdog::Launcher::kMayGo,
                        [dir = config.run.dir](const std::string& verdict, const ProgressBoard& board, bool speaks) {
                          end_of_hang(dir, verdict, board, speaks);
                        });
    open_data();
    start_on_device(ctx, mesh, config, self_check, log_of(style));
    const std::string ranks = table_of_ranks(ctx, mesh.world(), device_text(ctx));
    say("ranks:\n" + ranks);
    state_.allocate(ctx);
    const std::string checkpoint = resume.resumes() ? checkpoint_to_resume(resume) : "";
    if (!checkpoint.empty()) load(resume, rewind);
    else if (!config.init.from.empty()) load_initial_weights();
    else state_.initialize(ctx);
    if (rewind) land(*rewind);
    if (front_) {
      front_->open_metrics(step_);
      announce();
    }
  }

  // Set once run() has returned because the run goes back.
  const std::optional<Rewind>& rewind() const { return rewind_; }

  ExitCode run() {
    BatchStream stream(data_.train, batch_plan(config_, batch_sizes_, mesh_), step_);
    StopRequests stop(config_.run.dir, config_.run.time_limit, front_.has_value());
    stop_ = &stop;
    const CheckpointSection& c = config_.checkpoint;
    saver_.emplace(ctx_, mesh_.world(),
                   CheckpointSaver::Options{checkpoint_folder(), c.keep, c.in_background(),
                                            c.on_failure == OnFailedSave::kStop, loaded_checkpoint_},
                   state_.slices(c.contents));
    double waited = 0;
    const int64_t first_step = step_;
    // One that was due when the run stopped.
    const bool owes_evaluation = front_ && front_->last_validation_step() < step_;
    if (step_ > 0 && is_due(config_.eval.interval_steps) && any_rank(ctx_, mesh_.world(), owes_evaluation) &&
        !evaluate_all())
      return leave_on_request();
    while (step_ < config_.run.steps) {
      const auto start = Clock::now();
      const int64_t others_before = own_progress().collective_ns;
      enter_phase(Phase::kData, step_ + 1);
      fault_point("data");
      const StepBatches batches = stream.next_step();
      enter_phase(Phase::kStep);
      if (fault_point("step.begin").kind == FaultKind::kFlip) mesh_.world().barrier(ctx_);  // which no other rank calls
      const auto [result, goes_back] =
          guard_.run(step_ + 1, may_go_back(), [&](const SpikeRule* spikes) { return compute_step(batches, spikes); });
      if (goes_back) return leave_to_go_back(trouble_of(step_ + 1, result));
      step_ += 1;
      tokens_ += result.tokens;
      step_seconds_ = seconds_since(start);
      RankProgress& progress = own_progress();
      progress.longest_step_ms =
          std::max<int64_t>(progress.longest_step_ms, static_cast<int64_t>(step_seconds_ * 1e3) + 1);
      const double own_ms = step_seconds_ * 1e3 - double(own_progress().collective_ns - others_before) / 1e6;
      report(result, step_seconds_, stream.wait_seconds() - waited, times_of_ranks(own_ms));
      waited = stream.wait_seconds();
      if (step_ == first_step + 1) say_what_is_not_tuned();
      const int64_t replicas = config_.run.check_replicas_interval;
      if (replicas > 0 && step_ % replicas == 0) {
        state_.settle(ctx_);
        check_replicas(ctx_, mesh_, config_.model, state_.model.weights());
      }

      bool stops = asked_to_stop();
      if (!stops && is_due(config_.eval.interval_steps)) stops = !evaluate_all();
      saver_->poll();
      if (stops || is_due_or_last(config_.checkpoint.interval_steps)) save();
      if (stops || step_ == config_.run.steps) finish_saves();
      else report_saves();
      if (stops && (step_ < config_.run.steps || config_.eval.interval_steps > 0)) return leave_on_request();
    }
    flush_metrics();
    note("finished", concat("after ", step_, " steps"));
    fault_point("end");
    if (front_) {
      const std::string lost = front_->end_output(std::chrono::seconds(10));
      check<IoError>(lost.empty(), "the run is complete, but of its output ", lost);
    }
    return ExitCode::kDone;
  }

 private:
  bool is_due_or_last(int64_t interval) const {
    return step_ == config_.run.steps || (interval > 0 && step_ % interval == 0);
  }
  bool is_due(int64_t interval) const { return interval > 0 && is_due_or_last(interval); }

  void say(const std::string& text) {
    if (front_) front_->console().line(text);
  }
  // What also a quiet console says: something was lost, or may be.
  void warn(const std::string& text) {
    if (front_) front_->console().warning(text);
  }

  // In the run folder's list of events.
  void note(const std::string& event, const std::string& text) {
    if (front_) append_run_event(config_.run.dir, {step_, event, text, ""});
  }

  // The same for two runs exactly if they train on the same rows in the same order.
  std::string data_order_digest() const {
    const TrainSection& train = config_.train;
    std::string text =
        concat(data_digest_, " seed ", train.seed, " batch ", batch_sizes_.rows_after(0), " x ", train.seq_length);
    for (size_t i = 1; i < batch_sizes_.changes().size(); ++i)
      text += concat(" after step ", batch_sizes_.changes()[i][0], " batch ", batch_sizes_.changes()[i][1]);
    for (const BatchSizes::LeftOut& l : batch_sizes_.left_out())
      text += concat(" after step ", l[0], " without ", l[1]);
    for (const SourceConfig& source : config_.data.sources) {
      text += " weight " + yaml_text(source.tokens > 0 ? static_cast<double>(source.tokens) : source.weight);
      for (const WeightChange& change : source.weight_changes)
        text += concat(" from step ", change.from_step, " ", yaml_text(change.weight));
    }
    return sha256(text);
  }

  // Step step_ + 1; see train_step.
  StepResult compute_step(const StepBatches& batches, const SpikeRule* spikes) {
    const int64_t reserved = ctx_.scratch_reserved_bytes();
    StepResult result = train_step(ctx_, state_, batches, mesh_, config_, step_ + 1, spikes);
    if (fault_point("scratch").kind == FaultKind::kFlip) Scratch(ctx_).array<uint8_t>(reserved + 1);
    say_if_scratch_grew(reserved);
    if (fault_point("optim").kind == FaultKind::kFlip) flip_a_weight();
    // All that a step without an update has changed.
    if (!result.is_applied()) state_.balance.undo_step(ctx_);
    return result;
  }

  // A block that a step takes stays, so this is said at most a few times.
  void say_if_scratch_grew(int64_t reserved) {
    const int64_t now = ctx_.scratch_reserved_bytes();
    if (now <= reserved) return;
    const std::string text =
        concat("step ", step_ + 1, " took ", gib_text(now - reserved), " of scratch beside what was planned, ",
               gib_text(state_.needs().scratch.value_or(0)));
    warn(text + "; the memory table is too low, which is a defect of braid: report it, with the config");
    note("scratch_grew", text);
  }

  bool may_go_back() const {
    const int64_t up_to = step_ + 1 - config_.run.rewind_steps;
    const bool elsewhere = !saved_.empty() && saved_.front() <= up_to;
    return config_.run.rewind_steps > 0 && (rewind_times_ < kRewinds || elsewhere);
  }

  // The step behind step_ is not to be. What was saved before counts, so a save under way is brought to its end.
  ExitCode leave_to_go_back(const std::string& trouble) {
    saver_->finish();
    report_saves();
    const int64_t step = step_ + 1;
    rewind_ = Rewind{std::max<int64_t>(0, step - config_.run.rewind_steps), batch_sizes_.end_of(step), landed_,
                     rewind_times_};
    warn(trouble + ", also when computed again; the run goes back");
    note("goes_back", trouble);
    flush_metrics();
    if (front_) front_->end_output(std::chrono::seconds(10));
    return ExitCode::kDone;
  }

  // Behind a rewind, where the run goes on from: without the samples used since.
  void land(const Rewind& rewind) {
    const int64_t rows = rewind.next_sample - batch_sizes_.rows_of_first(step_);
    batch_sizes_.leave_out(step_, rows);
    mixture_ = mixture_of(config_, batch_sizes_);
    rewind_times_ = rewind.landed >= 0 && step_ <= rewind.landed ? rewind.times + 1 : 1;
    landed_ = step_;
    say(concat("went back to step ", step_, "; ", rows, " samples are left out"));
    note("went_back",
         concat("to step ", step_, "; ", rows, " samples are left out, as by data.left_out: [{after_step: ", step_,
                ", rows: ", rows, "}]"));
  }

  // For tests of check_replicas.
  void flip_a_weight() {
    bool done = false;
    state_.model.weights().visit(config_.model, [&](const std::string&, Tensor& tensor, const Shape&, Owner, Init,
                                                    Decay, const PackedRows& = {}) {
      if (!std::exchange(done, true) && tensor.device() == Device::kCpu)
        *static_cast<unsigned char*>(tensor.raw()) ^= 4;
    });
  }

  // The same answer on every rank. What is left to do then takes a step and a save; before the first save that is a
  // guess.
  bool asked_to_stop() {
    const double leave =
        step_seconds_ + (save_seconds_ > 0 ? save_seconds_ : std::min(60.0, config_.run.time_limit / 10));
    const bool said = stop_said_;
    const std::string& reason = stop_->agreed(ctx_, mesh_.world(), leave);
    if (reason.empty()) return false;
    stop_said_ = true;
    if (!said)
      say(concat(
          "asked to stop by ", reason, ": saving after step ", step_,
          save_seconds_ > 0 ? concat(", which took ", Console::format_duration(save_seconds_), " last time") : ""));
    return true;
  }

  ExitCode leave_on_request() {
    stop_->forget_file();
    say(concat("stopped on request after step ", step_,
               saves_weights_alone() ? "; its weights are saved, init.from starts another run with them"
                                     : "; go on with --resume"));
    note("stopped", concat("asked by ", stop_->agreed(ctx_, mesh_.world(), 0)));
    if (front_) {
      const std::string lost = front_->end_output(std::chrono::seconds(2));
      if (!lost.empty()) note("output", "of the console " + lost);
    }
    return saves_weights_alone() ? ExitCode::kStoppedWithWeights : ExitCode::kStoppedOnRequest;
  }

  void flush_metrics() {
    from_first_rank(ctx_, mesh_.world(), [&] {
      front_->flush();
      return std::string();
    });
  }

  bool saves_weights_alone() const { return config_.checkpoint.contents == CheckpointContents::kWeights; }

  std::string checkpoint_folder() const { return config_.run.dir + "/checkpoints"; }

  void open_run_folder(const ResumeFrom& resume, ConsoleStyle style) {
    from_first_rank(ctx_, mesh_.world(), [&] {
      front_.emplace(config_, style);
      clear_left_overs(checkpoint_folder());
      check<RunFolderError>(resume.resumes() || !front_->folder().has_run(), config_.run.dir,
                            ": the folder already holds a run; go on with --resume or choose another run.dir");
      return std::string();
    });
    check_folder_is_shared(ctx_, mesh_.world(), config_.run.dir);
    from_first_rank(ctx_, mesh_.world(), [&] {
      const auto on_disk = resume.resumes() ? ShardsOnDisk::kKeep : ShardsOnDisk::kCheck;
      if (!resume.resumes()) check_no_leak(config_);
      if (const int64_t again = prepare_shards(config_.data, config_.run.dir, on_disk); again > 0)
        say(concat(again, " text files were met twice, by a link or a second name, and are taken once"));
      return std::string();
    });
  }

  // The same tokens on every rank.
  void open_data() {
    std::vector<Fact> contents;
    // The first rank stores the counts of large sources; the others read them.
    from_first_rank(ctx_, mesh_.world(), [&] {
      data_ = open_datasets(config_);
      return std::string();
    });
    all_or_none(ctx_, mesh_.world(), [&] {
      if (data_.train.empty()) data_ = open_datasets(config_);
      data_digest_ = data_digest(config_, data_.train);
      contents.push_back({"the digest of the documents of data.sources", data_digest_});
      std::string tokens;
      for (const TokenDataset& data : data_.train) {
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
    write_file_atomically(front_->folder().path("config.resolved.yaml"), to_yaml(config_));
    write_file_atomically(front_->folder().path("parameters.txt"), format_parameter_table(table));
    write_file_atomically(front_->folder().path("build.txt"), std::string(kBuildId) + "\n");
    store_run_tokenizer(data_.train, config_.run.dir);
    write_file_atomically(front_->folder().path("data_order.txt"), data_order_digest() + "\n");
    say(concat("braid ", kBuildId));
    say("resolved config (also in " + front_->folder().path("config.resolved.yaml") + "):");
    say(to_yaml(config_));
    say(concat("parameters: ", table.size(), " tensors, listed in ", front_->folder().path("parameters.txt")));
    say(concat("ranks ", mesh_.size(), ", expert parallel ", mesh_.expert().size(), ", ", parameters, " parameters, ",
               state_.needs().total() >> 20, " MiB per rank planned, device ", ctx_.on_cuda() ? "cuda" : "cpu", ", ",
               name_of_enum(config_.precision)));
    const std::vector<int64_t> taken = mixture_.taken(batch_sizes_.rows_of_first(config_.run.steps));
    for (size_t i = 0; i < data_.train.size(); ++i) {
      const TokenDataset& data = data_.train[i];
      const double filled = double(data.num_tokens()) / double(data.size() * config_.train.seq_length);
      say(fmt::format("data {}: {} training tokens in {} rows, {:.4g} % filled; the run reads {} rows, {:.3g} epochs",
                      data.name(), data.num_tokens(), data.size(), 100 * filled, taken[i],
                      double(taken[i]) / double(data.size())));
    }
    if (config_.memory.offload != Offload::kNone)
      say(ctx_.on_cuda() ? concat("memory.offload: ", gib_text(state_.needs().offloaded), " of host memory per rank")
                         : "note: memory.offload changes nothing on a CPU, which has but one memory");
    for (const std::string& text : notes_of_environment()) {
      say("note: " + text);
      note("environment", text);
    }
    if (saves_weights_alone())
      say("note: checkpoint.contents is weights: no --resume goes on from what this run saves");
    const std::string where =
        concat("on ", mesh_.size(), mesh_.size() == 1 ? " rank" : " ranks", ", expert parallel ", mesh_.expert().size(),
               ", ", ctx_.on_cuda() ? "cuda" : "cpu", ", braid ", kBuildId);
    if (step_ > 0) say(concat("resumed after step ", step_, " (", tokens_, " tokens)"));
    if (!loaded_.empty()) say(loaded_);
    note(step_ > 0 ? "resumed" : "started", where);
    if (!loaded_.empty()) note("loaded", loaded_);
    for (const ConfigDifference& d : changed_) {
      if (d.key != "run.steps") say(concat("note: ", d.key, " was ", d.before, " and is ", d.after));
      note("changed", concat(d.key, " from ", d.before, " to ", d.after));
    }
    if (!schedule_note_.empty()) say(schedule_note_);
    if (overrides_.empty() || step_ == 0) return;
    MetricsLine marked;  // behind the last step before the change
    marked.set("step", step_);
    for (const ConfigDifference& d : changed_)
      if (std::find(overrides_.begin(), overrides_.end(), d.key) != overrides_.end()) {
        char* end = nullptr;
        const double value = std::strtod(d.after.c_str(), &end);
        marked.set("override/" + d.key, *end == '\0' ? value : 1.0);
      }
    if (marked.fields().size() > 1) front_->write_line(marked);
  }

  // The checkpoint to go on from, as rank 0 finds it; empty: the run starts from the beginning, as it ended before its
  // first.
  std::string checkpoint_to_resume(const ResumeFrom& resume) {
    return from_first_rank(ctx_, mesh_.world(), [&] {
      if (!resume.checkpoint.empty()) return resume.checkpoint;
      const auto checkpoints = list_checkpoints(checkpoint_folder());
      if (!checkpoints.empty()) return checkpoints.back().path;
      const bool begun = front_->folder().has_run();
      check<CheckpointError>(resume.mode == ResumeMode::kAuto || (begun && resume.mode == ResumeMode::kNewest),
                             checkpoint_folder(),
                             ": no checkpoint to resume from; --resume=auto starts where there is none");
      const int64_t saved = front_->folder().last_saved_step();
      check<CheckpointError>(saved < 0, checkpoint_folder(),
                             ": no checkpoint is here, though metrics.jsonl tells of "
                             "one of step ",
                             saved,
                             ": it was moved or removed, or its disk is not there; bring it back, or "
                             "start in another run.dir");
      if (begun) say(config_.run.dir + ": the run ended before its first checkpoint, so it starts from the beginning");
      return std::string();
    });
  }

  // Weights may differ from here on, but not before: the sources would go on elsewhere.
  void check_mixture_so_far(const RunConfig& stored, const CheckpointInfo& info, const std::string& path) const {
    const int64_t step = info.step;
    const BatchSizes before = batch_sizes_of(info, stored);
    const bool is_same =
        mixture_of(stored, before).is_same_before(mixture_of(config_, before), before.rows_of_first(step));
    check<CheckpointError>(is_same, path, ": the weights of data.sources up to step ", step,
                           " were others; change them by weight_changes from a later step on");
  }

  ResumeChoice resume_choice(const ResumeFrom& resume, const std::optional<Rewind>& rewind) const {
    ResumeChoice choice{checkpoint_folder(), resume.checkpoint, resume.mode == ResumeMode::kStrict};
    if (rewind) choice.up_to_step = rewind->up_to_step;
    return choice;
  }

  // What is told of a load, once there is where to tell it.
  void measure_load(const WeightSource& source, const std::function<void()>& load) {
    const auto start = Clock::now();
    load();
    int64_t total = source.bytes_read(), most = total;
    mesh_.world().all_reduce(ctx_, Tensor::of(&total, {1}), ReduceOp::kSum);
    mesh_.world().all_reduce(ctx_, Tensor::of(&most, {1}), ReduceOp::kMax);
    loaded_ = concat("loaded ", source.path(), ": read ", bytes_in_time(total, seconds_since(start)), ", ",
                     most / 1'000'000, " MB of it by the rank that read most");
  }

  void load(const ResumeFrom& resume, const std::optional<Rewind>& rewind) {
    enter_phase(Phase::kLoad);
    fault_point("load");
    RunConfig stored;
    const auto accept = [&](const CheckpointReader& reader) {
      const std::string& path = reader.path();
      const CheckpointInfo& info = reader.info();
      check<CheckpointError>(!reader.holds_weights_alone(), path,
                             ": holds weights alone, no state of a run to go on "
                             "with: start a run with init.from=",
                             path);
      stored = read_config_text(info.config_yaml, path);
      check_resume_config(stored, config_, path,
                          {info.num_ranks / stored.parallel.context, mesh_.num_data_ranks(), overrides_});
      check<CheckpointError>(
          info.data_digest == data_digest_, path,
          ": the run was trained on other data (or other shards of it, or rows that an earlier build "
          "packed otherwise) than data.sources now names");
      check_mixture_so_far(stored, info, path);
      check<CheckpointError>(info.step <= config_.run.steps, path, ": is after step ", info.step, ", run.steps is ",
                             config_.run.steps);
    };
    const Resumed resumed =
        resume_from(ctx_, mesh_.world(), resume_choice(resume, rewind), accept,
                    [&](const CheckpointReader& reader) { measure_load(reader, [&] { state_.load(ctx_, reader); }); });
    loaded_checkpoint_ = resumed.path;
    step_ = resumed.info.step;
    for (const std::string& text : resumed.damaged) {
      warn(text);
      note("damaged_checkpoint", text);
    }
    for (const std::string& text : resumed.set_aside) {
      say("note: " + text);
      note("set_aside", text);
    }
    tokens_ = resumed.info.tokens;
    batch_sizes_ = batch_sizes_of(resumed.info, stored);
    go_on_with(batch_sizes_, step_, config_);
    mixture_ = mixture_of(config_, batch_sizes_);
    guard_.restore(resumed.info);
    for (const ConfigDifference& d : compare_configs(stored, config_))
      if (d.key != "run.dir") changed_.push_back(d);
    if (stored.run.steps != config_.run.steps) schedule_note_ = note_of_schedule(stored, config_, step_);
  }

  // Nothing but the weights of that checkpoint is used. Where its model computed otherwise with weights of the same
  // shapes, that may be a mistake, so it is said.
  void load_initial_weights() {
    const StoredModel stored = open_stored_model(ctx_, mesh_.world(), config_.init.from);
    const StartingWeights weights(*stored.weights, config_);
    say("weights from " + stored.name);
    for (const std::string& note : weights.notes()) say("note: " + note);
    for (const ConfigDifference& d : compare_configs(stored.config, config_))
      if (d.key.starts_with("model.")) say(concat("note: ", d.key, " was ", d.before, " there and is ", d.after));
    measure_load(weights, [&] { state_.load_weights(ctx_, weights); });
  }

  void say_what_is_not_tuned() {
    const AlgorithmCounts products = matmul_algorithm_counts(ctx_);
    if (products.proposed > 0)
      say(concat("note: ", products.proposed, " of ", products.stored + products.proposed, " large products have no ",
                 "stored algorithm for this GPU and take the one that cuBLASLt proposes; braid bench step --tune"));
  }

  // What each rank needed of its own in the step, in ms; nothing where it cannot be told: on a GPU the host does not
  // wait for others, the device does.
  std::vector<double> times_of_ranks(double own_ms) {
    if (mesh_.size() == 1 || ctx_.on_cuda()) return {};
    std::vector<double> all(static_cast<size_t>(mesh_.size()));
    mesh_.world().all_gather(ctx_, Tensor::of(all.data(), {mesh_.size()}), Tensor::of(&own_ms, {1}));
    return all;
  }

  // What is not an error of the run, but a loss to it that nobody would notice.
  void look_for_losses(const StepResult& result, const std::vector<double>& own_ms, double step_ms) {
    if (!own_ms.empty())
      if (const std::string slow = slow_rank_.add(own_ms, step_ms); !slow.empty()) {
        say("note: " + slow);
        note("slow_rank", slow);
      }
    const auto names = moe_layer_names(result.balance.loads.size(), config_.mtp.on());
    for (const int64_t layer : routers_.add(result.balance.loads)) {
      const std::string text =
          concat("the router of ", names[static_cast<size_t>(layer)], " has collapsed: for ", RouterRule::kSteps,
                 " steps more than ", RouterRule::kShare * 100, " % of its choices went to ",
                 config_.model.num_experts_per_tok, " of ", config_.model.num_experts, " experts");
      warn(text);
      note("router_collapse", text);
    }
  }

  // What every source has given so far, and its loss in this step.
  void add_sources(MetricsLine& line, const StepResult& result) const {
    const std::vector<int64_t> taken = mixture_.taken(batch_sizes_.end_of(step_));
    for (size_t i = 0; i < data_.train.size(); ++i) {
      line.set("data/" + data_.train[i].name() + "/epoch", double(taken[i]) / double(data_.train[i].size()));
      line.set("data/" + data_.train[i].name() + "/tokens", taken[i] * config_.train.seq_length);
      line.set("data/" + data_.train[i].name() + "/loss", result.loss_of_sources[i]);
    }
  }

  void report(const StepResult& result, double seconds, double wait_seconds, const std::vector<double>& own_ms) {
    if (!front_) return;
    look_for_losses(result, own_ms, seconds * 1e3);
    MetricsLine line = training_line(step_, tokens_, result, config_, seconds, wait_seconds);
    if (!own_ms.empty()) {
      const OwnTimes times = own_times(own_ms);
      line.set("perf/slowest_rank", times.slowest);
      line.set("perf/slowest_rank_ms", times.most_ms);
      line.set("perf/median_rank_ms", times.median_ms);
    }
    add_sources(line, result);
    const bool with_loads = ExpertLoadsWriter::is_due(step_, config_.run.steps);
    front_->write_step(line, with_loads ? std::optional(expert_loads(step_, result, config_)) : std::nullopt);
    const ConsoleStep shown = {.step = step_,
                               .run_steps = config_.run.steps,
                               .tokens = tokens_,
                               .loss_lm = result.loss_lm,
                               .loss_mtp = result.loss_mtp,
                               .loss_balance = result.balance.loss,
                               .grad_norm = result.grad_norm,
                               .lr = result.lr,
                               .tokens_per_s = double(result.tokens) / seconds,
                               .mtp = config_.mtp.on()};
    front_->console().step(shown, is_due_or_last(config_.log.interval_steps));
  }

  // False if it was left because the run is to stop; nothing is reported then.
  bool evaluate_all() {
    enter_phase(Phase::kEvaluation);
    fault_point("eval");
    std::vector<Evaluation> evaluations;
    for (const TokenDataset& data : data_.validation) {
      evaluations.push_back(evaluate(ctx_, state_.model, mesh_, data, config_.train.micro_batch_size,
                                     config_.eval.sequences, {}, [this] { return asked_to_stop(); }));
      if (!evaluations.back().complete) return false;
    }
    for (const Evaluation& e : evaluations) {
      if (e.targets > 0)
        say(fmt::format("step {}: held-out loss of {} {:.4f} (unigram entropy {:.4f})", step_, e.name, e.loss,
                        e.unigram_entropy));
    }
    if (front_) front_->write_evaluation(validation_line(step_, evaluations));
    return true;
  }

  void save() {
    enter_phase(Phase::kSave);
    fault_point("save");
    flush_metrics();
    CheckpointInfo info;
    info.step = step_;
    info.tokens = tokens_;
    info.batch_sizes = batch_sizes_.changes();
    for (const BatchSizes::LeftOut& l : batch_sizes_.left_out())
      if (l[0] < step_) info.left_out.push_back(l);
    guard_.store(info);
    info.config_yaml = to_yaml(config_);
    info.build_id = kBuildId;
    info.data_digest = data_digest_;
    info.parameter_table = format_parameter_table(parameter_table(config_.model, config_.mtp));
    info.num_ranks = mesh_.size();
    info.expert_parallel = mesh_.expert().size();
    state_.settle(ctx_);
    saver_->start(info, state_.slices(config_.checkpoint.contents));
  }

  // The save that a run ends with must be there.
  void finish_saves() {
    saver_->finish();
    const std::vector<SaveReport> reports = report_saves(AfterSaves::kEnd);
    if (reports.empty() || reports.back().problem.empty()) return;
    const bool had_memory = reports.back().code != ExitCode::kOutOfMemory;
    throw_on_every_rank(Error(had_memory ? ExitCode::kIo : ExitCode::kOutOfMemory,
                              "the last checkpoint of the run could not be saved: " + reports.back().problem));
  }

  // At the end of the run an error says what is wrong with the last.
  enum class AfterSaves { kGoOn, kEnd };
  std::vector<SaveReport> report_saves(AfterSaves after = AfterSaves::kGoOn) {
    const std::vector<SaveReport> reports = saver_->take_reports();
    for (const SaveReport& report : reports) {
      if (!report.problem.empty()) {
        const std::string text = concat("the checkpoint of step ", report.step, " could not be saved");
        if (after == AfterSaves::kGoOn || &report != &reports.back())
          warn(text + ", the run goes on: " + report.problem);
        note("save_failed", text + ": " + report.problem);
        continue;
      }
      say(concat("saved ", report.path, ": ", describe_save(report)));
      if (!report.not_removed.empty())
        warn("older checkpoints could not be removed, and stay for now: " + report.not_removed);
      saved_.push_back(report.step);
      save_seconds_ = (report.stall_ms + report.write_ms) / 1e3;
      if (front_) front_->write_line(save_line(step_, report));
    }
    return reports;
  }

  Context& ctx_;
  const ProcessMesh& mesh_;
  const RunConfig& config_;
  BatchSizes batch_sizes_ = batch_sizes_of(config_);
  Mixture mixture_ = mixture_of(config_, batch_sizes_);
  ProgressBoard board_;
  TrainingState state_;
  std::optional<RunFront> front_;
  Datasets data_;
  std::string data_digest_;
  std::vector<std::string> overrides_;
  std::vector<ConfigDifference> changed_;  // since the checkpoint that a resume goes on from
  std::string schedule_note_;
  std::string loaded_checkpoint_;  // empty: none
  std::string loaded_;             // how that, or initial weights, were read; empty: nothing was
  std::optional<CheckpointSaver> saver_;
  int64_t step_ = 0, tokens_ = 0;
  std::optional<Watchdog> watchdog_;
  StepGuard guard_{{[this](const std::string& text) { warn(text); },
                    [this](const std::string& event, const std::string& text) { note(event, text); }}};
  RouterRule routers_{config_.model.num_experts_per_tok};
  SlowRankRule slow_rank_;
  std::optional<Rewind> rewind_;            // that this run ends with
  int64_t landed_ = -1, rewind_times_ = 0;  // of the one that it began with
  std::vector<int64_t> saved_;              // steps of the checkpoints of this start
  StopRequests* stop_ = nullptr;
  bool stop_said_ = false;
  double step_seconds_ = 0, save_seconds_ = 0;  // of the last one
};

// An error of one of several ranks on GPUs ends the process here, with no destructor of the run: a GPU's memory is not
// freed before the GPU is through, and it may be waiting for a rank that never comes.
ExitCode run_to_end(TrainingRun& run, bool may_wait_for_others) {
  try {
    return run.run();
  } catch (const OnEveryRank&) {
    throw;
  } catch (...) {
    if (may_wait_for_others) std::terminate();
    throw;
  }
}

}  // namespace

ExitCode run_training(Context& ctx, const ProcessMesh& mesh, const RunConfig& config, const ResumeFrom& resume,
                      SelfCheck self_check, ConsoleStyle console) {
  std::optional<Rewind> rewind;
  for (ResumeFrom from = resume;; from = {ResumeMode::kNewest, "", resume.overrides}) {
    TrainingRun run(ctx, mesh, config, from, rewind, rewind ? SelfCheck::kNo : self_check, console);
    const ExitCode code = run_to_end(run, ctx.on_cuda() && mesh.size() > 1);
    if (!run.rewind()) return code;
    rewind = run.rewind();
  }
}

}  // namespace braid
