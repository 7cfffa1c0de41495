#include "trainer/checkpoint/checkpoint_saver.h"

#include <algorithm>
#include <chrono>

#include "kernels/core/memory.h"
#include "parallel/rank_text.h"
#include "trainer/checkpoint/checkpoint_folder.h"
#include "trainer/checkpoint/device_slices.h"

namespace braid {
namespace {

using Clock = std::chrono::steady_clock;

double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

// What a disk, a folder or the memory for a copy of it can do to a save, and another save may not meet again.
bool is_passing(ExitCode code) {
  return code == ExitCode::kIo || code == ExitCode::kCheckpoint || code == ExitCode::kOutOfMemory;
}

}  // namespace

// The time that it lives is the training's wait for the save under way, whose report is complete then if it has ended.
class CheckpointSaver::Stall {
 public:
  explicit Stall(CheckpointSaver& saver) : saver_(saver), start_(Clock::now()) {}
  ~Stall() {
    saver_.report_.stall_ms += ms_since(start_);
    if (std::exchange(saver_.has_ended_, false)) saver_.reports_.push_back(saver_.report_);
  }

 private:
  CheckpointSaver& saver_;
  Clock::time_point start_;
};

CheckpointSaver::CheckpointSaver(Context& ctx, Communicator& world, Options options,
                                 const std::vector<CheckpointSlice>& like)
    : ctx_(ctx), world_(world), options_(std::move(options)), is_first_(world.rank() == 0) {
  if (!options_.in_background) return;
  memory_bytes_ = copy_bytes(like);
  memory_ = allocate_memory(Device::kCpu, memory_bytes_);
  check<OutOfMemoryError>(memory_ != nullptr, "no host memory left for ", memory_bytes_,
                          " bytes that are saved while the training goes on; checkpoint.async=false needs none");
  if (ctx.on_cuda()) pinned_ = PinnedMemory(memory_.get(), memory_bytes_);
}

int64_t CheckpointSaver::copy_bytes(const std::vector<CheckpointSlice>& slices) {
  int64_t bytes = 0;
  for (const CheckpointSlice& slice : slices) bytes += round_up(slice.data.bytes(), kMemoryAlignBytes);
  return bytes;
}

CheckpointSaver::~CheckpointSaver() {
  if (work_.valid() && work_.wait_for(std::chrono::seconds(0)) != std::future_status::deferred) work_.wait();
}

// The slices as they are now.
void CheckpointSaver::take_copy(const std::vector<CheckpointSlice>& slices) {
  slices_ = slices;
  int64_t at = 0;
  for (CheckpointSlice& slice : slices_) {
    const CheckpointSlice original = slice;
    const Tensor data(memory_.get() + at, original.data.dtype(), original.data.shape());
    slice = {original.name, original.shape, original.begin, original.end, data};
    at += round_up(data.bytes(), kMemoryAlignBytes);
    check<ShapeError>(at <= memory_bytes_, "a save has more bytes than its memory was planned for");
    copy_slice(ctx_, data, original);
  }
}

void CheckpointSaver::start(const CheckpointInfo& info, const std::vector<CheckpointSlice>& slices) {
  finish();
  report_ = {};
  report_.step = info.step;
  for (const CheckpointSlice& slice : slices) report_.bytes += slice.data.bytes();
  const Stall stall(*this);
  save_.emplace(options_.folder, info, world_.rank());
  if (options_.in_background) take_copy(slices);
  else slices_ = slices;
  run_on_first(Stage::kPreparing, [this] { save_->prepare(); });
  if (!options_.in_background) advance_to_the_end();
}

void CheckpointSaver::run(Stage stage, std::function<std::string()> work) {
  stage_ = stage;
  // What is waited for is done by the thread that waits, whose device this is.
  work_ = std::async(options_.in_background ? std::launch::async : std::launch::deferred, std::move(work));
}

void CheckpointSaver::run_on_first(Stage stage, std::function<void()> work) {
  if (is_first_) return run(stage, [work = std::move(work)] { return work(), std::string(); });
  stage_ = stage;
  work_ = std::async(std::launch::deferred, [] { return std::string(); });
}

bool CheckpointSaver::any_rank_works() {
  int64_t own = work_.wait_for(std::chrono::seconds(0)) == std::future_status::timeout;
  std::vector<int64_t> all(static_cast<size_t>(world_.size()));
  world_.all_gather(ctx_, Tensor::of(all.data(), {world_.size()}), Tensor::of(&own, {1}));
  return std::find(all.begin(), all.end(), 1) != all.end();
}

void CheckpointSaver::poll() {
  if (!save_) return;
  const Stall stall(*this);
  if (!any_rank_works()) advance();
}

void CheckpointSaver::finish() {
  if (!save_) return;
  const Stall stall(*this);
  advance_to_the_end();
}

void CheckpointSaver::advance_to_the_end() {
  while (save_) {
    work_.wait();
    advance();
  }
}

// From a stage that every rank is through with to the next.
void CheckpointSaver::advance() {
  std::vector<std::string> results;
  try {
    results = all_or_none(ctx_, world_, [this] { return work_.get(); });
  } catch (const Error& e) {
    if (stage_ != Stage::kPruning) return fail(e);
    report_.not_removed = e.what();
  }
  switch (stage_) {
    case Stage::kPreparing:
      return run(Stage::kWriting, [this] {
        const Clock::time_point start = Clock::now();
        Context host = Context::cpu();
        std::string part = save_->write(options_.in_background ? host : ctx_, slices_);
        report_.write_ms = ms_since(start);
        return part;
      });
    case Stage::kWriting:
      return run_on_first(Stage::kCommitting, [this, parts = std::move(results)] { save_->commit(parts); });
    case Stage::kCommitting:
      report_.path = save_->path();
      return run(Stage::kReadingBack, [this] {
        const Clock::time_point start = Clock::now();
        save_->read_back();
        report_.read_back_ms = ms_since(start);
        return std::string();
      });
    case Stage::kReadingBack:
      failures_ = 0;
      options_.verified = save_->path();
      return run_on_first(Stage::kPruning,
                          [this] { prune_checkpoints(options_.folder, options_.keep, options_.verified); });
    case Stage::kPruning: return measure_over_ranks(), end_save();
  }
}

void CheckpointSaver::measure_over_ranks() {
  double own[] = {double(report_.bytes), report_.write_ms, report_.read_back_ms};
  std::vector<double> all(3 * static_cast<size_t>(world_.size()));
  world_.all_gather(ctx_, Tensor::of(all.data(), {std::ssize(all)}), Tensor::of(own, {3}));
  report_.bytes = 0;
  for (size_t i = 0; i < all.size(); i += 3) {
    report_.bytes += static_cast<int64_t>(all[i]);
    report_.write_ms = std::max(report_.write_ms, all[i + 1]);
    report_.read_back_ms = std::max(report_.read_back_ms, all[i + 2]);
  }
}

void CheckpointSaver::end_save() {
  save_.reset();
  slices_.clear();
  has_ended_ = true;
}

void CheckpointSaver::fail(const Error& error) {
  if (is_first_) save_->drop();
  ++failures_;
  report_.path.clear();
  report_.problem = error.what();
  report_.code = error.code();
  end_save();
  if (is_passing(error.code()) && !options_.stop_on_failure && failures_ < kMostFailures) return;
  throw_on_every_rank(
      Error(error.code(), concat("the checkpoint of step ", report_.step, " could not be saved",
                                 failures_ == kMostFailures ? ", the 3rd in a row" : "", ": ", error.what())));
}

}  // namespace braid
