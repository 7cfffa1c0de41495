#pragma once

#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/core/queues.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/checkpoint/device_slices.h"

namespace braid {

// How a save went.
struct SaveReport {
  int64_t step = 0;
  std::string path;                 // where it is committed; empty: it failed,
  std::string problem;              // because of this
  ExitCode code = ExitCode::kDone;  // of the problem
  int64_t bytes = 0;                // of all ranks,
  double write_ms = 0;              // until the slowest rank's were on its disk
  double read_back_ms = 0;          // and until it had read them again
  double stall_ms = 0;              // that the training of this rank waited for the save
  std::string not_removed;          // why older checkpoints stay that were to go; empty: none do
};

// Saves a run's checkpoints while it goes on. start() copies what is to be saved into memory of its own; a thread of
// each rank writes the copy, rank 0's commits, each reads back what it wrote, and only then rank 0's removes old
// checkpoints. In the foreground there is neither copy nor thread. Threads never communicate: poll(), which every rank
// calls after every step, goes on to the next stage once all ranks are through with the last. One save is under way at
// a time. A save that fails leaves nothing, is reported, and the next one is tried as if nothing had been; after three
// in a row, or one if so told, the error is thrown, on every rank. One that was read back has not failed, whatever
// becomes of those that were to be removed for it.
class CheckpointSaver {
 public:
  static constexpr int kMostFailures = 3;
  struct Options {
    std::string folder;
    int64_t keep = 0;              // newest checkpoints that stay; 0: all
    bool in_background = true;     // else start() returns when the save is done
    bool stop_on_failure = false;  // at the first
    std::string verified;          // a checkpoint that this run has loaded: it stays until a newer one was read back
  };
  // like: slices as start() will get them; in the background it takes as much memory as they have.
  // Errors: OutOfMemoryError.
  CheckpointSaver(Context& ctx, Communicator& world, Options options, const std::vector<CheckpointSlice>& like);
  ~CheckpointSaver();  // waits until this rank's thread is done
  CheckpointSaver(const CheckpointSaver&) = delete;
  CheckpointSaver& operator=(const CheckpointSaver&) = delete;

  // Called by every rank at the same time, as are the two below. The slices may change when it returns. Waits for the
  // save before.
  void start(const CheckpointInfo& info, const std::vector<CheckpointSlice>& slices);
  void poll();
  void finish();  // until nothing is under way

  std::vector<SaveReport> take_reports() { return std::exchange(reports_, {}); }
  int64_t memory_bytes() const { return memory_bytes_; }                  // of the copy
  static int64_t copy_bytes(const std::vector<CheckpointSlice>& slices);  // what it takes for these

 private:
  // Preparing, committing and pruning are rank 0's, the others have nothing to do meanwhile.
  enum class Stage { kPreparing, kWriting, kCommitting, kReadingBack, kPruning };
  class Stall;

  void take_copy(const std::vector<CheckpointSlice>& slices);
  void run(Stage stage, std::function<std::string()> work);
  void run_on_first(Stage stage, std::function<void()> work);
  bool any_rank_works();
  void advance();
  void advance_to_the_end();
  void measure_over_ranks();
  void end_save();
  void fail(const Error& error);

  Context& ctx_;
  Communicator& world_;
  Options options_;
  bool is_first_;
  int64_t memory_bytes_ = 0;
  std::shared_ptr<std::byte> memory_;
  PinnedMemory pinned_;                  // that memory, where slices lie on a GPU
  std::optional<CheckpointSave> save_;   // under way
  std::vector<CheckpointSlice> slices_;  // what it writes: the copy, or in the foreground what it was given
  Stage stage_ = Stage::kPreparing;
  std::future<std::string> work_;  // of this rank
  SaveReport report_;              // of the save under way,
  bool has_ended_ = false;         // or of the one that just was
  std::vector<SaveReport> reports_;
  int failures_ = 0;
};

}  // namespace braid
