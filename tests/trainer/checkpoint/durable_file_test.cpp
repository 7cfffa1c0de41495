#include "trainer/checkpoint/durable_file.h"

#include <random>

#include "kernels/core/error.h"
#include "tests/trainer/checkpoint/checkpoint_testing.h"

namespace braid {
namespace {

namespace fs = std::filesystem;
using namespace braid::testing;

class DurableFileTest : public FolderTest {};

TEST_F(DurableFileTest, AppearsWhenItIsFinished) {
  std::string bytes(300000, '\0');
  std::mt19937 random(1);
  for (char& c : bytes) c = static_cast<char>(random());
  {
    DurableFile file(path("f"), static_cast<int64_t>(bytes.size()));
    file.write(bytes.data(), 1);
    file.write(bytes.data(), 0);
    file.write(bytes.data() + 1, static_cast<int64_t>(bytes.size()) - 1);
    EXPECT_FALSE(fs::exists(path("f")));
    EXPECT_TRUE(fs::exists(path("f.part")));
    file.finish();
  }
  EXPECT_EQ(bytes_of(path("f")), bytes);
  EXPECT_FALSE(fs::exists(path("f.part")));
}

TEST_F(DurableFileTest, LeavesNothingUnlessFinished) {
  write_bytes(path("f"), "older");
  { DurableFile(path("f"), 5).write("newer", 5); }
  EXPECT_EQ(bytes_of(path("f")), "older");
  EXPECT_FALSE(fs::exists(path("f.part")));
}

TEST_F(DurableFileTest, ALeftOverPartIsNoObstacle) {
  write_bytes(path("f.part"), "left over and longer");
  DurableFile file(path("f"), 3);
  file.write("new", 3);
  file.finish();
  EXPECT_EQ(bytes_of(path("f")), "new");
}

TEST_F(DurableFileTest, NeverWritesThroughALink) {
  write_bytes(path("canary"), "canary");
  fs::create_symlink(path("canary"), path("f.part"));
  expect_contains(message_of<IoError>([&] { DurableFile(path("f"), 3); }), "f.part: cannot be created");
  EXPECT_EQ(bytes_of(path("canary")), "canary");
}

TEST_F(DurableFileTest, AFullDiskShowsAtTheStartWithBothNumbers) {
  FileSizeLimit limit(1000);
  const std::string message = message_of<IoError>([&] { DurableFile(path("f"), 5000); });
  expect_contains(message, path("f") + ": cannot be written: ");
  expect_contains(message, "(5000 bytes needed, ");
  expect_contains(message, " free)");
  EXPECT_TRUE(fs::is_empty(folder_));
}

// Short first: the kernel writes what fits, then refuses.
TEST_F(DurableFileTest, AFailingWriteIsReportedAndLeavesNothing) {
  FileSizeLimit limit(1000);
  const std::string bytes(1500, 'x');
  expect_contains(message_of<IoError>([&] {
                    DurableFile file(path("f"), 0);
                    file.write(bytes.data(), 1500);
                  }),
                  path("f") + ": cannot be written: ");
  EXPECT_TRUE(fs::is_empty(folder_));
}

TEST_F(DurableFileTest, AFailingRenameIsReportedAndLeavesNothing) {
  fs::create_directory(path("f"));
  DurableFile file(path("f"), 1);
  file.write("x", 1);
  expect_contains(message_of<IoError>([&] { file.finish(); }), path("f") + ": cannot be given its name: ");
  EXPECT_FALSE(fs::exists(path("f.part")));
}

TEST_F(DurableFileTest, CreatesFoldersWithTheirParents) {
  create_folder(path("a/b/c"));
  create_folder(path("a/b/c"));
  create_folder(path("a/d/"));
  EXPECT_TRUE(fs::is_directory(path("a/b/c")));
  EXPECT_TRUE(fs::is_directory(path("a/d")));
  write_bytes(path("file"), "x");
  expect_contains(message_of<IoError>([&] { create_folder(path("file")); }), "file: the folder cannot be created");
  expect_contains(message_of<IoError>([&] { create_folder(path("file/x")); }), "file: the folder cannot be created");
  expect_contains(message_of<IoError>([&] { create_folder(""); }), "the folder cannot be created");
  EXPECT_THROW(sync_folder(path("absent")), IoError);
}

}  // namespace
}  // namespace braid
