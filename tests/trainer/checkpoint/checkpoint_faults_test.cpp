// What a save does when the operating system fails.
#include "tests/testing.h"
#include "tests/trainer/checkpoint/checkpoint_testing.h"
#include "tests/trainer/checkpoint/faulty_system.h"
#include "trainer/checkpoint/checkpoint.h"

namespace braid {
namespace {

namespace fs = std::filesystem;
using namespace braid::testing;

class CheckpointFaultsTest : public FolderTest {
 protected:
  Context ctx_ = Context::cpu();
  std::unique_ptr<Communicator> world_ = make_local_communicator();

  void TearDown() override {
    fault = {};
    short_writes = 0;
    reserves_space = true;
    FolderTest::TearDown();
  }

  std::string save(int64_t step, double value) {
    Tensor t = zeros_f64({3});
    t.data<double>()[1] = value;
    CheckpointInfo info;
    info.step = step;
    return save_checkpoint(ctx_, *world_, path("run/checkpoints"), info, {{"t", {3}, 0, 3, t}});
  }
  double value_of(int64_t step) {
    Tensor t = zeros_f64({3});
    CheckpointSlice slice{"t", {3}, 0, 3, t};
    for (const CheckpointEntry& entry : list_checkpoints(path("run/checkpoints")))
      if (entry.step == step) CheckpointReader(entry.path).read(slice);
    return t.data<double>()[1];
  }
  std::vector<std::string> left_overs() {
    std::vector<std::string> names;
    for (const auto& entry : fs::recursive_directory_iterator(path("run"))) {
      const std::string name = entry.path().filename();
      if (name[0] == '.' || name.ends_with(".part")) names.push_back(name);
    }
    return names;
  }

  // Saves again and again, each time with a later call failing, until a save needs no more calls.
  void fail_every_call(const Fault& kind, int64_t step) {
    int failures = 0;
    for (int64_t nth = 1;; ++nth) {
      const double before = value_of(step);
      fault = kind;
      fault.nth = nth;
      bool saved = false;
      try {
        save(step, static_cast<double>(nth));
        saved = true;
      } catch (const IoError& e) {
        expect_contains(e.what(), folder_);
        ++failures;
      }
      const bool was_hit = fault.calls >= nth;
      fault = {};
      const double after = value_of(step);
      // Storage that refuses to make the commit last and to take it back as well leaves it: whole, though not promised.
      if (saved || !kind.forever || after != static_cast<double>(nth)) {
        EXPECT_EQ(after, saved ? static_cast<double>(nth) : before) << "call " << nth;
      }
      EXPECT_EQ(value_of(1), step == 1 ? value_of(step) : -1) << "call " << nth;
      EXPECT_EQ(left_overs(), std::vector<std::string>{}) << "call " << nth;
      if (HasFailure()) return;
      if (!was_hit) {
        EXPECT_EQ(failures, nth - 1);
        EXPECT_GE(failures, 12);
        return;
      }
      if (step != 1) fs::remove_all(path("run/checkpoints/step-000000002"));
    }
  }
};

TEST_F(CheckpointFaultsTest, AFailingCallCommitsNothingAndTouchesNothingElse) {
  for (const int error : {EIO, ENOSPC}) {
    save(1, -1);
    fail_every_call({.error = error}, 2);
    fs::remove_all(path("run"));
  }
}

TEST_F(CheckpointFaultsTest, NeitherDoesAStorageThatFailsFromThenOn) {
  save(1, -1);
  fail_every_call({.forever = true}, 2);
}

TEST_F(CheckpointFaultsTest, ACheckpointOfTheSameStepComesBack) {
  save(1, -1);
  fail_every_call({}, 1);
}

TEST_F(CheckpointFaultsTest, TheFirstSaveOfARunMayFailAnywhere) {
  for (int64_t nth = 1;; ++nth) {
    fault = {.nth = nth};
    const bool failed = message_of<IoError>([&] { save(5, 5); }) != "";
    const bool was_hit = fault.calls >= nth;
    fault = {};
    if (failed) {
      EXPECT_TRUE(list_checkpoints(path("run/checkpoints")).empty()) << nth;
      EXPECT_EQ(value_of(5), 0);
    }
    save(5, 6);
    EXPECT_EQ(value_of(5), 6);
    fs::remove_all(path("run"));
    if (!was_hit) break;
    ASSERT_LT(nth, 100);
  }
}

// What was digested is what is used: no read is trusted because of an earlier one of the same bytes.
TEST_F(CheckpointFaultsTest, AWrongByteFromAnyReadIsSeen) {
  Tensor t = random_normal({300000}, DType::kF64, 1);
  CheckpointInfo info;
  info.step = 1;
  const std::string saved =
      save_checkpoint(ctx_, *world_, path("run/checkpoints"), info, {{"t", {300000}, 0, 300000, t}});
  for (const bool is_shared : {false, true}) {
    for (int64_t nth = 1;; ++nth) {
      Tensor out = zeros_f64({300000});
      reads = 0;
      flipped_read = nth;
      const std::string message = message_of<CheckpointError>([&] {
        const CheckpointReader reader = is_shared ? CheckpointReader(ctx_, *world_, saved) : CheckpointReader(saved);
        for (int64_t at = 0; at < 300000; at += 100000) {
          CheckpointSlice slice{"t", {300000}, at, at + 100000, out.rows(at, at + 100000)};
          reader.read(slice);
        }
        reader.settle(ctx_, *world_);
      });
      flipped_read = 0;
      if (reads < nth) {
        EXPECT_EQ(message, "");
        expect_same_bits(out, t);
        EXPECT_GE(nth, 4);
        break;
      }
      EXPECT_NE(message, "") << "read " << nth << (is_shared ? " with others" : "");
    }
  }
}

TEST_F(CheckpointFaultsTest, ShortAndInterruptedWritesAreContinued) {
  const std::string whole = bytes_of(save(1, 3) + "/rank-00000.safetensors");
  for (int64_t bytes : {1, 7}) {
    short_writes = bytes;
    const std::string saved = save(2, 3);
    short_writes = 0;
    EXPECT_EQ(bytes_of(saved + "/rank-00000.safetensors"), whole);
    CheckpointReader(saved).verify();
  }
}

TEST_F(CheckpointFaultsTest, AFileSystemThatReservesNoSpaceWillDo) {
  reserves_space = false;
  save(2, 3);
  EXPECT_EQ(value_of(2), 3);
}

}  // namespace
}  // namespace braid
