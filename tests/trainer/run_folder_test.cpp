#include "trainer/run_folder.h"

#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "kernels/core/error.h"
#include "tests/testing.h"

namespace braid {
namespace {

namespace fs = std::filesystem;

class RunFolderTest : public ::testing::Test {
 protected:
  std::string dir_ = ::testing::TempDir() + "braid_run_folder_test/nested";
  void SetUp() override { fs::remove_all(fs::path(dir_).parent_path()); }
  void TearDown() override { SetUp(); }

  // What a second process says when it wants the folder: 0 got it, 8 in use.
  int other_process() {
    const pid_t child = fork();
    if (child == 0) {
      try {
        RunFolder folder(dir_);
        _exit(0);
      } catch (const RunFolderError& e) {
        _exit(std::string(e.what()).find(std::to_string(getppid())) != std::string::npos ? 8 : 9);
      }
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WEXITSTATUS(status);
  }
};

TEST_F(RunFolderTest, IsHeldByOneProcessAndFreedWithIt) {
  {
    RunFolder folder(dir_);
    EXPECT_FALSE(folder.has_run());
    EXPECT_EQ(other_process(), 8) << "the message names the owner's process";
    std::ofstream(folder.path("metrics.jsonl")) << "{}\n";
    EXPECT_TRUE(folder.has_run());
  }
  EXPECT_EQ(other_process(), 0);
}

TEST_F(RunFolderTest, AFileInTheWayIsNamed) {
  fs::create_directories(fs::path(dir_).parent_path());
  std::ofstream(dir_) << "x";
  EXPECT_THROW(RunFolder{dir_}, IoError);
}

TEST_F(RunFolderTest, WritesFilesWholeOrNotAtAll) {
  RunFolder folder(dir_);
  write_file_atomically(folder.path("note.txt"), "one");
  write_file_atomically(folder.path("note.txt"), "two");
  std::ifstream in(folder.path("note.txt"));
  std::string text;
  std::getline(in, text);
  EXPECT_EQ(text, "two");
  EXPECT_FALSE(fs::exists(folder.path("note.txt.part")));
  EXPECT_THROW(write_file_atomically(dir_ + "/absent/note.txt", "x"), IoError);
}

}  // namespace
}  // namespace braid
