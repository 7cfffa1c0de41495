#include "trainer/checkpoint/checkpoint_saver.h"

#include <sys/wait.h>

#include <barrier>
#include <bit>
#include <filesystem>
#include <fstream>

#include "kernels/core/copy.h"
#include "kernels/core/split_float.h"
#include "kernels/split_weights.h"
#include "tests/testing.h"
#include "tests/trainer/checkpoint/checkpoint_testing.h"
#include "tests/trainer/checkpoint/faulty_system.h"

namespace braid {
namespace {

namespace fs = std::filesystem;
using namespace braid::testing;

constexpr int64_t kNumel = 100003;

class CheckpointSaverTest : public FolderTest {
 protected:
  Context ctx_ = Context::cpu();
  std::unique_ptr<Communicator> world_ = make_local_communicator();

  void TearDown() override {
    fault = {};
    flipped_read = 0;
    FolderTest::TearDown();
  }
  // A tensor shared by ranks: rank r has the r-th part, filled with `value`.
  struct State {
    explicit State(const Communicator& world)
        : begin(kNumel * world.rank() / world.size()),
          memory(static_cast<size_t>(kNumel * (world.rank() + 1) / world.size() - begin)),
          part(Tensor::of(memory.data(), {std::ssize(memory)})) {}
    int64_t begin;
    std::vector<double> memory;
    Tensor part;
    void fill(double value) {
      for (int64_t i = 0; i < part.numel(); ++i) part.data<double>()[i] = value + double(begin + i);
    }
    std::vector<CheckpointSlice> slices() const { return {{"t", {kNumel}, begin, begin + part.numel(), part}}; }
  };
  static CheckpointInfo info(int64_t step) {
    CheckpointInfo info;
    info.step = step;
    return info;
  }
  CheckpointSaver::Options options(bool in_background = true) const {
    CheckpointSaver::Options options;
    options.folder = path("checkpoints");
    options.in_background = in_background;
    return options;
  }
  void expect_saved(int64_t step, double value) const {
    Tensor t = zeros_f64({kNumel});
    CheckpointSlice slice{"t", {kNumel}, 0, kNumel, t};
    CheckpointReader(concat(path("checkpoints/"), step_name(step))).read(slice);
    for (int64_t i = 0; i < kNumel; ++i) ASSERT_EQ(t.data<double>()[i], value + double(i)) << i;
  }
  std::vector<int64_t> steps() const {
    std::vector<int64_t> steps;
    for (const CheckpointEntry& entry : list_checkpoints(path("checkpoints"))) steps.push_back(entry.step);
    return steps;
  }
  std::vector<std::string> left_overs() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::recursive_directory_iterator(folder_)) {
      const std::string name = entry.path().filename();
      if (name[0] == '.' || name.ends_with(".part")) names.push_back(name);
    }
    return names;
  }
};

using Steps = std::vector<int64_t>;

// Of this process: what it had at most of the machine's memory since this was made, above what it had then.
class PeakMemory {
 public:
  PeakMemory() {
    std::ofstream("/proc/self/clear_refs") << 5;  // the peak begins anew
    before_ = status("VmRSS:");
  }
  int64_t grown_bytes() const { return (status("VmHWM:") - before_) << 10; }

 private:
  static int64_t status(const std::string& key) {
    std::ifstream file("/proc/self/status");
    for (std::string word; file >> word;)
      if (int64_t kib = 0; word == key && file >> kib) return kib;
    return -1;
  }
  int64_t before_;
};

// fp32 masters that lie as bf16 weights and low bits, which change as soon as start() has returned.
TEST_F(CheckpointSaverTest, JoinsMastersThatAreSplit) {
  for (const bool in_background : {true, false}) {
    const Tensor master = random_normal({kNumel}, DType::kF32, 1);
    Tensor weight = zeros({kNumel}, DType::kBF16), low = zeros({kNumel, 2}, DType::kU8);
    split_weights(ctx_, weight, low, master);
    CheckpointSlice split{"t", {kNumel}, 0, kNumel, Tensor(nullptr, DType::kF32, {kNumel}), weight, low};
    const int64_t step = in_background ? 1 : 2;
    CheckpointSaver saver(ctx_, *world_, options(in_background), {split});
    saver.start(info(step), {split});
    if (in_background) {
      fill_zero(ctx_, weight);
      fill_zero(ctx_, low);
    }
    saver.finish();
    Tensor stored = zeros({kNumel}, DType::kF32);
    CheckpointSlice slice{"t", {kNumel}, 0, kNumel, stored};
    CheckpointReader(concat(path("checkpoints/"), step_name(step))).read(slice);
    expect_same_bits(stored, master);
  }
}

// Of masters that are split, 192 MiB of them, which is where a GPU's slices go, too.
TEST_F(CheckpointSaverTest, ASaveThatIsWaitedForPassesThroughAStagingBuffer) {
  const int64_t count = 3 * kStagingBytes / 4 + 12345;
  Tensor weight = zeros({count}, DType::kBF16), low = zeros({count, 2}, DType::kU8);
  for (int64_t i = 0; i < count; i += 1000) static_cast<uint16_t*>(weight.raw())[i] = static_cast<uint16_t>(i % 32000);
  for (int64_t i = 0; i < count; ++i) low.data<uint8_t>()[2 * i] = static_cast<uint8_t>(i % 251);
  const CheckpointSlice split{"t", {count}, 0, count, Tensor(nullptr, DType::kF32, {count}), weight, low};
  CheckpointSaver saver(ctx_, *world_, options(false), {split});
  EXPECT_EQ(saver.memory_bytes(), 0);
  const PeakMemory peak;
  saver.start(info(1), {split});
  EXPECT_LT(peak.grown_bytes(), kStagingBytes + (int64_t{48} << 20)) << "that, and scratch to join masters in";
  EXPECT_EQ(saver.take_reports().at(0).bytes, 4 * count);

  const CheckpointReader reader(path("checkpoints/") + step_name(1));
  Tensor stored = zeros({1000003}, DType::kF32);
  int64_t wrong = 0;
  for (int64_t begin = 0; begin < count; begin += stored.numel()) {
    const int64_t end = std::min(count, begin + stored.numel());
    CheckpointSlice part{"t", {count}, begin, end, stored.rows(0, end - begin)};
    reader.read(part);
    for (int64_t i = begin; i < end; ++i) {
      const SplitFloat halves{static_cast<const uint16_t*>(weight.raw())[i], static_cast<int16_t>(i % 251)};
      wrong += std::bit_cast<uint32_t>(stored.data<float>()[i - begin]) != join_float(halves);
    }
  }
  EXPECT_EQ(wrong, 0);
}

TEST_F(CheckpointSaverTest, SavesWhatTheSlicesHeldWhenItWasStarted) {
  for (const bool in_background : {true, false}) {
    for (const int size : {1, 3}) {
      ThreadRanks(size).run([&](Context& ctx, Communicator& world) {
        State state(world);
        CheckpointSaver saver(ctx, world, options(in_background), state.slices());
        EXPECT_EQ(saver.memory_bytes() >= state.part.bytes(), in_background);
        for (int64_t step = 1; step <= 4; ++step) {
          state.fill(double(step));
          saver.start(info(step), state.slices());
          for (int other = 0; other < 3; ++other) {
            state.fill(-7);
            saver.poll();
          }
        }
        saver.finish();
        const auto reports = saver.take_reports();
        ASSERT_EQ(reports.size(), 4u);
        for (size_t i = 0; i < 4; ++i) {
          EXPECT_EQ(reports[i].step, int64_t(i) + 1);
          EXPECT_EQ(reports[i].problem, "");
          EXPECT_EQ(reports[i].path, path("checkpoints/") + step_name(int64_t(i) + 1));
          EXPECT_EQ(reports[i].bytes, kNumel * int64_t{sizeof(double)});
          EXPECT_GT(reports[i].stall_ms, 0);
          EXPECT_GT(reports[i].write_ms, 0);
          EXPECT_GT(reports[i].read_back_ms, 0);
        }
        EXPECT_TRUE(saver.take_reports().empty());
      });
      for (int64_t step = 1; step <= 4; ++step) expect_saved(step, double(step));
      EXPECT_EQ(left_overs(), std::vector<std::string>{});
      fs::remove_all(path("checkpoints"));
    }
  }
}

TEST_F(CheckpointSaverTest, ASaveGoesOnBesideTheFirstToo) {
  State state(*world_);
  state.fill(1);
  CheckpointSaver saver(ctx_, *world_, options(), state.slices());
  for (const int64_t step : {1, 2}) {
    saver.start(info(step), state.slices());
    int polls = 0;
    for (; saver.take_reports().empty(); ++polls) {
      saver.poll();
      usleep(1000);
    }
    EXPECT_GE(polls, 5) << "one for each stage";
    expect_saved(step, 1);
  }
  saver.poll();  // nothing to do
  saver.finish();
}

TEST_F(CheckpointSaverTest, AFailedSaveIsReportedAndTheNextOneTried) {
  std::barrier<> barrier(2);
  ThreadRanks(2).run([&](Context& ctx, Communicator& world) {
    State state(world);
    CheckpointSaver saver(ctx, world, options(), state.slices());
    const auto save = [&](int64_t step, bool fails) {
      state.fill(double(step));
      barrier.arrive_and_wait();
      if (world.rank() == 0) fault = fails ? Fault{.nth = 1, .error = ENOSPC, .forever = true} : Fault{};
      barrier.arrive_and_wait();
      saver.start(info(step), state.slices());
      saver.finish();
      return saver.take_reports().at(0);
    };
    EXPECT_EQ(save(1, false).problem, "");
    for (int round = 0; round < 2; ++round) {  // a success in between begins the count anew
      for (int64_t step : {2, 3}) {
        const SaveReport report = save(step, true);
        EXPECT_EQ(report.path, "");
        expect_contains(report.problem, path("checkpoints/"));
        expect_contains(report.problem, "No space left");
      }
      EXPECT_EQ(save(4, false).problem, "");
    }
    save(5, true);
    save(6, true);
    const std::string message = message_of<Error>([&] { save(7, true); });
    expect_contains(message, "the checkpoint of step 7 could not be saved, the 3rd in a row: ");
    EXPECT_EQ(saver.take_reports().back().step, 7);
  });
  fault = {};
  EXPECT_EQ(steps(), (Steps{1, 4}));
  expect_saved(4, 4);
  EXPECT_EQ(left_overs(), std::vector<std::string>{});
}

TEST_F(CheckpointSaverTest, AFailedSaveEndsTheRunIfItIsToldTo) {
  State state(*world_);
  CheckpointSaver::Options strict = options();
  strict.stop_on_failure = true;
  CheckpointSaver saver(ctx_, *world_, strict, state.slices());
  fault = {.nth = 1};
  saver.start(info(1), state.slices());
  expect_contains(message_of<Error>([&] { saver.finish(); }),
                  "the checkpoint of step 1 could not be saved: " + folder_);
  fault = {};
  EXPECT_EQ(steps(), Steps{});
}

// Whatever fails, in whichever thread: the state before is there, nothing is left over, and the next save is good.
TEST_F(CheckpointSaverTest, EveryCallMayFail) {
  for (int64_t nth = 1;; ++nth) {
    State state(*world_);
    CheckpointSaver saver(ctx_, *world_, options(), state.slices());
    state.fill(1);
    saver.start(info(1), state.slices());
    saver.finish();
    state.fill(2);
    fault = {.nth = nth, .error = nth % 2 ? EIO : ENOSPC};
    saver.start(info(2), state.slices());
    saver.finish();
    const bool was_hit = fault.calls >= nth;
    fault = {};
    const SaveReport report = saver.take_reports().back();
    EXPECT_EQ(report.problem.empty(), !was_hit) << nth;
    EXPECT_EQ(steps(), was_hit ? Steps{1} : (Steps{1, 2})) << nth;
    EXPECT_EQ(left_overs(), std::vector<std::string>{}) << nth;
    EXPECT_EQ(branch_checkpoints(path("checkpoints"))[0].step, was_hit ? 1 : 2);
    saver.start(info(3), state.slices());
    saver.finish();
    expect_saved(1, 1);
    expect_saved(3, 2);
    fs::remove_all(path("checkpoints"));
    if (HasFailure()) return;
    if (!was_hit) {
      EXPECT_GE(nth, 15);
      return;
    }
  }
}

// What was written well and cannot be read back is no checkpoint, and what it was to take the place of stays.
TEST_F(CheckpointSaverTest, OldCheckpointsGoOnlyForOnesThatWereReadBack) {
  State state(*world_);
  CheckpointSaver::Options one = options();
  one.keep = 1;
  CheckpointSaver saver(ctx_, *world_, one, state.slices());
  const auto save = [&](int64_t step, int64_t wrong_read) {
    state.fill(double(step));
    reads = 0;
    flipped_read = wrong_read;
    saver.start(info(step), state.slices());
    saver.finish();
    flipped_read = 0;
    return saver.take_reports().back().problem;
  };
  EXPECT_EQ(save(1, 0), "");
  expect_contains(save(2, 1), "is not what was written");
  EXPECT_EQ(left_overs(), (std::vector<std::string>{".corrupt-step-000000002"}));
  EXPECT_EQ(steps(), Steps{1});
  expect_saved(1, 1);
  EXPECT_EQ(branch_checkpoints(path("checkpoints"))[0].step, 1);
  EXPECT_EQ(save(3, 0), "");
  EXPECT_EQ(steps(), Steps{3});
}

TEST_F(CheckpointSaverTest, ASaverThatEndsWithASaveUnderWayWaitsAndLeavesNoHalf) {
  State state(*world_);
  for (int64_t step = 1; step <= 10; ++step) {
    CheckpointSaver saver(ctx_, *world_, options(), state.slices());
    saver.start(info(1), state.slices());
    saver.start(info(2), state.slices());
    for (int64_t poll = 1; poll < step; ++poll) {
      saver.poll();
      usleep(300);
    }
  }
  for (const CheckpointEntry& entry : list_checkpoints(path("checkpoints"))) CheckpointReader(entry.path).verify();
  clear_left_overs(path("checkpoints"));
  EXPECT_EQ(left_overs(), std::vector<std::string>{});
}

// A process that saves in the background and prunes is killed at each system call in turn, of whichever thread.
TEST_F(CheckpointSaverTest, AKillAtAnyCallLeavesOnlyWholeCheckpoints) {
  for (int64_t nth = 1;; ++nth) {
    const pid_t child = fork();
    if (child == 0) {
      State state(*world_);
      CheckpointSaver::Options two = options();
      two.keep = 2;
      CheckpointSaver saver(ctx_, *world_, two, state.slices());
      fault = {.nth = nth, .kills = true};
      for (int64_t step = 1; step <= 4; ++step) {
        state.fill(double(step));
        saver.start(info(step), state.slices());
      }
      saver.finish();
      _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    const auto branch = branch_checkpoints(path("checkpoints"));
    for (const CheckpointEntry& entry : branch) expect_saved(entry.step, double(entry.step));
    if (branch.size() >= 2) {
      EXPECT_EQ(branch[0].step, branch[1].step + 1);
    }
    if (nth > 30) {
      EXPECT_GE(branch.size(), 1u);
    }
    const bool was_hit = WIFSIGNALED(status);
    if (!was_hit) {
      EXPECT_EQ(steps(), (Steps{3, 4}));
      EXPECT_GE(nth, 50);
    }
    fs::remove_all(path("checkpoints"));
    if (!was_hit || HasFailure()) return;
  }
}

}  // namespace
}  // namespace braid
