#include "trainer/run/run_folder.h"

#include <sys/wait.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "kernels/core/error.h"
#include "tests/file_testing.h"

namespace braid {
namespace {

namespace fs = std::filesystem;
using namespace braid::testing;

class RunFolderTest : public FolderTest {
 protected:
  void SetUp() override {
    FolderTest::SetUp();
    dir_ = path("deeply/nested/run");
  }

  // What a second process gets that wants the folder: the error's text, or nothing if it gets the folder.
  std::string error_in_other_process() {
    int ends[2];
    EXPECT_EQ(pipe(ends), 0);
    const pid_t child = fork();
    if (child == 0) {
      std::string message;
      try {
        RunFolder folder(dir_);
      } catch (const RunFolderError& e) {
        message = e.what();
      } catch (const std::exception& e) {
        message = std::string("another error: ") + e.what();
      }
      _exit(write(ends[1], message.data(), message.size()) == ssize_t(message.size()) ? 0 : 1);
    }
    close(ends[1]);
    std::string message(4096, '\0');
    const ssize_t n = read(ends[0], message.data(), message.size());
    close(ends[0]);
    int status = 0;
    waitpid(child, &status, 0);
    EXPECT_EQ(status, 0);
    return message.substr(0, size_t(std::max<ssize_t>(n, 0)));
  }

  std::string dir_;
};

TEST_F(RunFolderTest, IsHeldByOneProcessAndFreedWithIt) {
  {
    RunFolder folder(dir_);
    EXPECT_EQ(folder.dir(), dir_);
    EXPECT_EQ(folder.path("x"), dir_ + "/x");
    const auto owner = nlohmann::json::parse(bytes_of(folder.path("OWNER.json")));
    EXPECT_EQ(owner.at("pid"), getpid());
    const std::string since = owner.at("since"), host = owner.at("host");
    EXPECT_EQ(since.size(), std::string("2026-01-31T23:59:59Z").size());
    EXPECT_FALSE(host.empty());
    EXPECT_EQ(error_in_other_process(), dir_ + ": the run folder is in use by process " + std::to_string(getpid()) +
                                            " on " + host + " since " + since);
  }
  EXPECT_EQ(error_in_other_process(), "");
  RunFolder again(dir_);
}

TEST_F(RunFolderTest, IsFreedWhenItsOwnerIsKilled) {
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t child = fork();
  if (child == 0) {
    RunFolder folder(dir_);
    const bool told = write(ready[1], "x", 1) == 1;
    while (told) pause();
    _exit(1);
  }
  char byte;
  ASSERT_EQ(read(ready[0], &byte, 1), 1);
  expect_contains(message_of<RunFolderError>([&] { RunFolder{dir_}; }), "process " + std::to_string(child) + " on ");
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  RunFolder folder(dir_);
  close(ready[0]);
  close(ready[1]);
}

TEST_F(RunFolderTest, AnUnreadableOwnerFileHidesNoError) {
  RunFolder folder(dir_);
  for (const char* text : {"", "garbage", "{}", R"({"pid": "x", "host": 3, "since": null})"}) {
    write_bytes(folder.path("OWNER.json"), text);
    EXPECT_EQ(error_in_other_process(),
              dir_ + ": the run folder is in use by another process (" + dir_ + "/OWNER.json does not say which)");
  }
}

TEST_F(RunFolderTest, AFileInTheWayIsNamed) {
  write_bytes(path("file"), "x");
  expect_contains(message_of<IoError>([&] { RunFolder{path("file")}; }),
                  path("file") + ": the folder cannot be created");
  expect_contains(message_of<IoError>([&] { RunFolder{path("file/run")}; }), "file");
  fs::create_directories(dir_ + "/LOCK");
  expect_contains(message_of<IoError>([&] { RunFolder{dir_}; }), dir_ + "/LOCK: cannot be opened");
}

TEST_F(RunFolderTest, WhereNoCheckpointsCanBeIsRefusedAtTheStart) {
  write_bytes(path("run/checkpoints"), "");
  expect_contains(message_of<IoError>([&] { RunFolder folder(path("run")); }),
                  path("run/checkpoints") + ": is no folder");
  fs::remove(path("run/checkpoints"));
  RunFolder folder(path("run"));
}

TEST_F(RunFolderTest, AFolderThatCannotBeWrittenIsRefusedAndFreed) {
  {
    FileSizeLimit nothing(0);
    expect_contains(message_of<IoError>([&] { RunFolder{dir_}; }), "OWNER.json: cannot be written");
  }
  EXPECT_EQ(error_in_other_process(), "");
}

TEST_F(RunFolderTest, KnowsWhetherItHoldsARun) {
  RunFolder folder(dir_);
  EXPECT_FALSE(folder.has_run());
  write_bytes(folder.path("metrics.jsonl"), "");
  fs::create_directories(folder.path("checkpoints/.tmp-step-000000001"));
  EXPECT_FALSE(folder.has_run()) << "a start that came to nothing may be repeated";
  write_bytes(folder.path("metrics.jsonl"), "{}\n");
  EXPECT_TRUE(folder.has_run());
  fs::remove(folder.path("metrics.jsonl"));
  fs::create_directories(folder.path("checkpoints/step-000000001"));
  write_bytes(folder.path("checkpoints/step-000000001/MANIFEST.json"), "");
  EXPECT_TRUE(folder.has_run());
}

TEST_F(RunFolderTest, KnowsOfCheckpointsThatAreGone) {
  RunFolder folder(dir_);
  EXPECT_EQ(folder.last_saved_step(), -1);
  write_bytes(folder.path("metrics.jsonl"), "{\"step\": 1}\nno JSON\n");
  EXPECT_EQ(folder.last_saved_step(), -1);
  write_bytes(
      folder.path("metrics.jsonl"),
      "{\"step\": 11, \"checkpoint/step\": 10}\n{\"step\": 21, \"checkpoint/step\": 20}\n{\"step\": 22}\n{\"st");
  EXPECT_EQ(folder.last_saved_step(), 20);
}

TEST_F(RunFolderTest, OneThatWasMovedOrReplacedIsNotThere) {
  const RunFolder folder(dir_);
  folder.check_is_there();
  fs::rename(dir_, path("moved"));
  expect_contains(message_of<IoError>([&] { folder.check_is_there(); }), "is not the run folder any more");
  const RunFolder other(dir_);
  other.check_is_there();
  expect_contains(message_of<IoError>([&] { folder.check_is_there(); }), "is not the run folder any more");
  fs::remove_all(dir_);
  fs::rename(path("moved"), dir_);
  folder.check_is_there();
}

}  // namespace
}  // namespace braid
