#include "kernels/core/file_text.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

#include "kernels/core/error.h"
#include "tests/file_testing.h"

namespace braid {
namespace {

class FileTextTest : public testing::FolderTest {};

TEST_F(FileTextTest, AllOfAFile) {
  const std::string bytes("a\0\n\xff", 4);
  testing::write_bytes(path("file"), bytes);
  EXPECT_EQ(file_text(path("file")), bytes);
}

TEST_F(FileTextTest, NothingWhereNothingCanBeRead) {
  EXPECT_EQ(file_text(path("absent")), "");
  EXPECT_EQ(file_text(path("")), "") << "a folder opens, and its read fails";
}

// What is read of processes that end meanwhile: found by killing ranks, 2 times in 1,870.
TEST_F(FileTextTest, NothingOfAProcessThatHasEnded) {
  const pid_t child = fork();
  if (child == 0) pause();
  std::ifstream stat(concat("/proc/", child, "/stat"));  // opened while it was there
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  EXPECT_THROW(std::string(std::istreambuf_iterator<char>(stat), {}), std::ios_base::failure);
  EXPECT_EQ(file_text(concat("/proc/", child, "/stat")), "");
}

}  // namespace
}  // namespace braid
