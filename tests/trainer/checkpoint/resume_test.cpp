#include "trainer/checkpoint/resume.h"

#include <algorithm>
#include <filesystem>
#include <map>

#include "tests/testing.h"
#include "tests/trainer/checkpoint/checkpoint_testing.h"

namespace braid {
namespace {

namespace fs = std::filesystem;
using namespace braid::testing;

class ResumeTest : public FolderTest {
 protected:
  Context ctx_ = Context::cpu();
  std::unique_ptr<Communicator> world_ = make_local_communicator();

  // A checkpoint that holds its step.
  std::string save(int64_t step, const std::string& folder = "checkpoints") {
    CheckpointInfo info;
    info.step = step;
    Tensor t = zeros_f64({4});
    for (int i = 0; i < 4; ++i) t.data<double>()[i] = static_cast<double>(step);
    return save_checkpoint(ctx_, *world_, path(folder), info, {{"t", {4}, 0, 4, t}});
  }
  void damage(const std::string& checkpoint) {
    std::string bytes = bytes_of(checkpoint + "/rank-00000.safetensors");
    bytes.back() ^= 1;
    write_bytes(checkpoint + "/rank-00000.safetensors", bytes);
  }
  struct Outcome {
    double loaded = -1;  // what the tensor held
    Resumed resumed;
    std::string message;
  };
  // By two ranks.
  Outcome resume(const ResumeChoice& choice, const std::function<void(const CheckpointReader&)>& accept = {}) {
    Outcome outcomes[2];
    ThreadRanks(2).run([&](Context& ctx, Communicator& world) {
      Outcome& outcome = outcomes[world.rank()];
      outcome.message = message_of<CheckpointError>([&] {
        outcome.resumed = resume_from(
            ctx, world, choice,
            [&](const CheckpointReader& reader) {
              if (accept) accept(reader);
            },
            [&](const CheckpointReader& reader) {
              std::vector<double> memory(2);
              const Tensor t = Tensor::of(memory.data(), {2});
              CheckpointSlice slice{"t", {4}, 2 * world.rank(), 2 * world.rank() + 2, t};
              reader.read(slice);
              reader.settle(ctx, world);
              outcome.loaded = memory[0];
            });
      });
    });
    EXPECT_EQ(outcomes[0].loaded, outcomes[1].loaded);
    EXPECT_EQ(outcomes[0].message, outcomes[1].message);
    EXPECT_EQ(outcomes[0].resumed.damaged, outcomes[1].resumed.damaged);
    EXPECT_EQ(outcomes[0].resumed.set_aside, outcomes[1].resumed.set_aside);
    return outcomes[0];
  }
  Outcome resume() { return resume({path("checkpoints"), "", false}); }
  using Names = std::vector<std::string>;
  Names names() const {
    Names names;
    for (const auto& entry : fs::directory_iterator(path("checkpoints"))) names.push_back(entry.path().filename());
    std::sort(names.begin(), names.end());
    return names;
  }
};

TEST_F(ResumeTest, TakesTheNewest) {
  for (int64_t step : {4, 8, 12}) save(step);
  const Outcome outcome = resume();
  EXPECT_EQ(outcome.loaded, 12);
  EXPECT_EQ(outcome.resumed.info.step, 12);
  EXPECT_EQ(outcome.resumed.path, path("checkpoints/step-000000012"));
  EXPECT_TRUE(outcome.resumed.damaged.empty());
  EXPECT_TRUE(outcome.resumed.set_aside.empty());
  EXPECT_EQ(names(), (Names{"LATEST", "step-000000004", "step-000000008", "step-000000012"}));
}

TEST_F(ResumeTest, GoesBackToTheNewestUpToAStep) {
  for (int64_t step : {4, 8, 12}) save(step);
  EXPECT_EQ(resume({path("checkpoints"), "", false, 11}).loaded, 8);
  EXPECT_EQ(names(), (Names{".abandoned-step-000000012", "LATEST", "step-000000004", "step-000000008"}));
  EXPECT_EQ(resume({path("checkpoints"), "", false, 8}).loaded, 8);
  EXPECT_EQ(resume({path("checkpoints"), "", false, 3}).loaded, 4) << "the oldest, if all are behind it";
}

// A run would begin anew beside its checkpoints.
TEST_F(ResumeTest, AFolderThatCannotBeListedIsNoEmptyOne) {
  std::filesystem::create_symlink("loop", path("loop"));
  expect_contains(message_of<IoError>([&] { list_checkpoints(path("loop")); }), path("loop") + ": cannot be listed: ");
  EXPECT_TRUE(list_checkpoints(path("absent")).empty());
}

TEST_F(ResumeTest, PassesOverDamagedOnesLoudly) {
  for (int64_t step : {4, 8, 12}) save(step);
  damage(path("checkpoints/step-000000012"));
  const Outcome refused = resume({path("checkpoints"), "", true});
  expect_contains(refused.message, path("checkpoints/step-000000012/rank-00000.safetensors") + ": tensor t: ");
  EXPECT_EQ(names().size(), 4u) << "strict changes nothing";

  fs::resize_file(path("checkpoints/step-000000008/MANIFEST.json"), 100);
  const Outcome outcome = resume();
  EXPECT_EQ(outcome.loaded, 4);
  const Resumed& resumed = outcome.resumed;
  ASSERT_EQ(resumed.damaged.size(), 2u);
  expect_contains(resumed.damaged[0], "the checkpoint " + path("checkpoints/step-000000012") + " is damaged");
  expect_contains(resumed.damaged[0], "tensor t: elements 0 to 4: do not match their digest");
  expect_contains(resumed.damaged[1], "MANIFEST.json: does not match its own digest");
  ASSERT_EQ(resumed.set_aside.size(), 2u);
  expect_contains(resumed.set_aside[0], "set aside as " + path("checkpoints/.corrupt-step-000000012"));
  EXPECT_EQ(names(), (Names{".corrupt-step-000000008", ".corrupt-step-000000012", "LATEST", "step-000000004"}));
  EXPECT_EQ(bytes_of(path("checkpoints/LATEST")), "step-000000004\n");
  EXPECT_EQ(resume().loaded, 4);
  damage(save(8));
  EXPECT_EQ(resume().loaded, 4);
  EXPECT_EQ(names()[1], ".corrupt-step-000000008.2");
}

// A file closed to this user may be whole: that is for people to mend, and no work is given up for it.
TEST_F(ResumeTest, OneThatMayNotBeReadIsNotDamaged) {
  for (int64_t step : {4, 8}) save(step);
  for (const char* name : {"MANIFEST.json", "rank-00000.safetensors"}) {
    const std::string file = path("checkpoints/step-000000008/") + name;
    fs::permissions(file, fs::perms::none);
    {
      const OrdinaryUser user(folder_);
      const ResumeChoice choice{path("checkpoints"), "", false};
      ThreadRanks(2).run([&](Context& ctx, Communicator& world) {
        const std::string message = message_of<IoError>([&] {
          resume_from(
              ctx, world, choice, [](const CheckpointReader&) {}, [](const CheckpointReader&) {});
        });
        expect_contains(message, file + ": cannot be opened: Permission denied");
      });
    }
    EXPECT_EQ(names(), (Names{"LATEST", "step-000000004", "step-000000008"})) << "nothing is changed";
    fs::permissions(file, fs::perms::owner_read);
  }
  EXPECT_EQ(resume().loaded, 8);
}

TEST_F(ResumeTest, SaysWhyNoneCanBeUsed) {
  EXPECT_EQ(resume().message, path("checkpoints") + ": no checkpoint to resume from");
  for (int64_t step : {4, 8}) damage(save(step));
  const std::string message = resume().message;
  expect_contains(message, path("checkpoints") + ": none of its 2 checkpoints can be used, the newest because of ");
  expect_contains(message, "step-000000008/rank-00000.safetensors: tensor t: ");
  EXPECT_EQ(names(), (Names{"LATEST", "step-000000004", "step-000000008"})) << "nothing is changed";
}

TEST_F(ResumeTest, AnotherConfigIsNoDamage) {
  for (int64_t step : {4, 8}) save(step);
  const Outcome outcome = resume({path("checkpoints"), "", false}, [](const CheckpointReader& reader) {
    check<CheckpointError>(reader.info().step == 4, "made with another config");
  });
  EXPECT_EQ(outcome.message, "made with another config");
  EXPECT_EQ(names(), (Names{"LATEST", "step-000000004", "step-000000008"}));
}

TEST_F(ResumeTest, AnOlderOneIsTheBeginningOfABranch) {
  for (int64_t step : {4, 8, 12}) save(step);
  const Outcome outcome = resume({path("checkpoints"), path("checkpoints/step-000000004/"), false});
  EXPECT_EQ(outcome.loaded, 4);
  ASSERT_EQ(outcome.resumed.set_aside.size(), 2u);
  expect_contains(outcome.resumed.set_aside[0], "set aside as " + path("checkpoints/.abandoned-step-000000012"));
  EXPECT_EQ(names(), (Names{".abandoned-step-000000008", ".abandoned-step-000000012", "LATEST", "step-000000004"}));
  EXPECT_EQ(resume().loaded, 4);
  save(6);
  EXPECT_EQ(resume().loaded, 6);
}

// Folders of before branches were set aside.
TEST_F(ResumeTest, LatestSaysWhichBranchItIs) {
  for (int64_t step : {4, 20, 8}) save(step);
  EXPECT_EQ(open_checkpoint(folder_).info().step, 8);
  const Outcome outcome = resume();
  EXPECT_EQ(outcome.loaded, 8);
  EXPECT_EQ(names(), (Names{".abandoned-step-000000020", "LATEST", "step-000000004", "step-000000008"}));
}

TEST_F(ResumeTest, LatestOfASaveThatWasKilledNamesNothing) {
  for (int64_t step : {4, 8}) save(step);
  for (const char* text : {"step-000000012\n", "", "\xff", "../x\n"}) {
    write_bytes(path("checkpoints/LATEST"), text);
    EXPECT_EQ(resume().loaded, 8);
    EXPECT_EQ(bytes_of(path("checkpoints/LATEST")), "step-000000008\n");
  }
}

TEST_F(ResumeTest, ACheckpointOfAnotherRunBeginsAnew) {
  save(4);
  save(8);
  const std::string other = save(6, "other");
  EXPECT_EQ(resume({path("checkpoints"), other, false}).loaded, 6);
  EXPECT_EQ(names(), (Names{".abandoned-step-000000004", ".abandoned-step-000000008", "LATEST"}));
  EXPECT_EQ(list_checkpoints(path("other")).size(), 1u);
  damage(other);
  expect_contains(resume({path("checkpoints"), other, false}).message, other);
}

TEST_F(ResumeTest, LeftOversAreCleared) {
  save(4);
  for (const char* name : {".tmp-step-000000008/deep", ".trash-step-000000002/deep", ".corrupt-step-000000003"})
    fs::create_directories(path("checkpoints/") + name);
  write_bytes(path("checkpoints/LATEST.part"), "step");
  clear_left_overs(path("checkpoints"));
  EXPECT_EQ(names(), (Names{".corrupt-step-000000003", "LATEST", "step-000000004"}));
  clear_left_overs(path("absent"));
}

}  // namespace
}  // namespace braid
