#include "kernels/core/durable_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <random>

#include "kernels/core/error.h"
#include "tests/file_testing.h"

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

// Pieces of all sizes: those that are gathered, those that do not fit to what is, and those that go out by themselves.
TEST_F(DurableFileTest, KeepsTheOrderOfPiecesOfAnySize) {
  std::mt19937 random(2);
  std::string bytes(3'000'000, '\0');
  for (char& c : bytes) c = static_cast<char>(random());
  DurableFile file(path("f"), std::ssize(bytes));
  for (int64_t at = 0; at < std::ssize(bytes);) {
    const int64_t size = std::min<int64_t>(std::ssize(bytes) - at, random() % (1 + (int64_t{1} << random() % 20)));
    file.write(bytes.data() + at, size);
    at += size;
  }
  file.finish();
  EXPECT_EQ(bytes_of(path("f")), bytes);
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
  expect_contains(message_of<IoError>([&] { DurableFile(path("f"), 3); }), path("f") + ": cannot be created");
  EXPECT_EQ(bytes_of(path("canary")), "canary");
}

// Renamed over, a device would be a file from then on: as root, that of the whole machine.
TEST_F(DurableFileTest, WhatIsNoFileIsNotReplaced) {
  ASSERT_EQ(mkfifo(path("pipe").c_str(), 0600), 0);
  fs::create_directory(path("folder"));
  for (const char* name : {"pipe", "folder"})
    EXPECT_EQ(message_of<IoError>([&] { write_file_atomically(path(name), "x"); }),
              path(name) + ": is there already and is no file");
  EXPECT_TRUE(fs::is_fifo(path("pipe")));
}

TEST_F(DurableFileTest, OutputGoesWhereverAUserSays) {
  write_output(path("new"), "new");
  EXPECT_EQ(bytes_of(path("new")), "new");
  write_bytes(path("target"), "older");
  fs::create_symlink("target", path("link"));
  write_output(path("link"), "newer");
  EXPECT_TRUE(fs::is_symlink(path("link")));
  EXPECT_EQ(bytes_of(path("target")), "newer");
  ASSERT_EQ(mkfifo(path("pipe").c_str(), 0600), 0);
  const int reader = ::open(path("pipe").c_str(), O_RDONLY | O_NONBLOCK);
  write_output(path("pipe"), "through");
  char text[16] = {};
  EXPECT_EQ(::read(reader, text, sizeof text), 7);
  EXPECT_STREQ(text, "through");
  ::close(reader);
  EXPECT_TRUE(fs::is_fifo(path("pipe")));
  fs::create_symlink("/dev/full", path("full"));  // a link, so that a mistake costs no device
  EXPECT_EQ(message_of<IoError>([&] { write_output(path("full"), "x"); }),
            path("full") + ": cannot be written: No space left on device");
  EXPECT_TRUE(fs::is_symlink(path("full")));
  fs::create_symlink("circle", path("circle"));
  EXPECT_EQ(message_of<IoError>([&] { write_output(path("circle"), "x"); }),
            path("circle") + ": cannot be written: Too many levels of symbolic links");
  EXPECT_EQ(message_of<IoError>([&] { write_output(folder_, "x"); }), folder_ + ": is a folder");
  write_output(path("absent/too/x"), "x");
  EXPECT_EQ(bytes_of(path("absent/too/x")), "x");
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
  const std::string bytes(1'000'000, 'x');
  for (const int64_t size : {1'500, 1'000'000}) {  // gathered, or written at once
    expect_contains(message_of<IoError>([&] {
                      DurableFile file(path("f"), 0);
                      file.write(bytes.data(), size);
                      file.finish();
                    }),
                    path("f") + ": cannot be written: ");
    EXPECT_TRUE(fs::is_empty(folder_));
  }
}

TEST_F(DurableFileTest, AFailingRenameIsReportedAndLeavesNothing) {
  DurableFile file(path("f"), 1);
  fs::create_directory(path("f"));
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

// More than the disk is told to take at once.
TEST_F(DurableFileTest, LongFilesAreWhole) {
  std::string bytes(20 << 20, 'x');
  for (size_t i = 0; i < bytes.size(); i += 1000) bytes[i] = static_cast<char>(i / 1000);
  DurableFile file(path("f"), static_cast<int64_t>(bytes.size()));
  for (size_t at = 0; at < bytes.size(); at += 3 << 20)
    file.write(bytes.data() + at, static_cast<int64_t>(std::min<size_t>(3 << 20, bytes.size() - at)));
  file.finish();
  EXPECT_TRUE(bytes_of(path("f")) == bytes);
}

class DurableFolderTest : public FolderTest {
 protected:
  // Fills a folder of this name.
  void make(const std::string& name, bool finish = true) {
    DurableFolder folder(name);
    write_bytes(folder.temporary() + "/file", "new");
    EXPECT_FALSE(fs::exists(name + "/file"));
    if (finish) folder.finish();
  }
  std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder_)) names.push_back(entry.path().filename());
    std::sort(names.begin(), names.end());
    return names;
  }
};

TEST_F(DurableFolderTest, AppearsWhenItIsFinishedAndLeavesNothingOtherwise) {
  make(path("f"), false);
  EXPECT_TRUE(fs::is_empty(folder_));
  make(path("f"));
  EXPECT_EQ(names(), std::vector<std::string>{"f"});
  EXPECT_EQ(bytes_of(path("f/file")), "new");
}

TEST_F(DurableFolderTest, ItsNameMayBeAnEmptyFolderEndInASlashOrHaveNoParentYet) {
  fs::create_directory(path("empty"));
  make(path("empty"));
  make(path("slash/"));
  make(path("no/parent"));
  make(path("./a/../dots"));
  for (const char* name : {"empty", "slash", "no/parent", "dots"}) EXPECT_EQ(bytes_of(path(name) + "/file"), "new");
  EXPECT_EQ(names(), (std::vector<std::string>{"dots", "empty", "no", "slash"}));
}

TEST_F(DurableFolderTest, WhatAKilledProcessLeftIsReplaced) {
  fs::create_directories(path(".tmp-f/folder"));
  write_bytes(path(".tmp-f/folder/old"), "old");
  make(path("f"));
  EXPECT_EQ(std::distance(fs::directory_iterator(path("f")), {}), 1);
  EXPECT_EQ(names(), std::vector<std::string>{"f"});
}

TEST_F(DurableFolderTest, ATakenNameIsRefusedAndLeftAlone) {
  const auto refusal = [&](const std::string& name) { return message_of<IoError>([&] { make(path(name)); }); };
  write_bytes(path("file"), "x");
  EXPECT_EQ(refusal("file"), path("file") + ": is there already and is no folder");
  fs::create_directory(path("full"));
  write_bytes(path("full/x"), "x");
  EXPECT_EQ(refusal("full"), path("full") + ": is there already and is not empty");
  fs::create_directory(path("empty"));
  fs::create_symlink(path("empty"), path("link"));
  EXPECT_EQ(refusal("link"), path("link") + ": is there already and is no folder");
  fs::create_symlink(path("empty"), path(".tmp-f"));
  expect_contains(refusal("f"), path(".tmp-f") + ": cannot be opened: ");
  EXPECT_EQ(names(), (std::vector<std::string>{".tmp-f", "empty", "file", "full", "link"}));
}

TEST_F(DurableFolderTest, SaysWhyTheSystemRefuses) {
  const std::string name(255, 'x');  // none is left for ".tmp-"
  EXPECT_EQ(message_of<IoError>([&] { make(path(name)); }),
            path(name) + ": the folder cannot be created: File name too long");
}

TEST_F(DurableFolderTest, ATakenNameIsNoticedAtTheEndAsWell) {
  DurableFolder folder(path("f"));
  fs::create_directory(path("f"));
  write_bytes(path("f/x"), "x");
  expect_contains(message_of<IoError>([&] { folder.finish(); }), path("f") + ": cannot be given its name: ");
  EXPECT_EQ(bytes_of(path("f/x")), "x");
}

TEST_F(DurableFolderTest, OneProcessAtATimeWritesIt) {
  DurableFolder folder(path("f"));
  write_bytes(folder.temporary() + "/file", "first");
  EXPECT_EQ(message_of<IoError>([&] { make(path("f")); }),
            path("f") + ": cannot be written: another process is writing it");
  folder.finish();
  EXPECT_EQ(bytes_of(path("f/file")), "first");
}

TEST_F(DurableFileTest, WritesTextsWholeOrNotAtAll) {
  const std::string note = path("note.txt");
  write_file_atomically(note, "one");
  write_file_atomically(note, "");
  EXPECT_EQ(bytes_of(note), "");
  write_file_atomically(note, "two");
  {
    FileSizeLimit tight(10);
    EXPECT_THROW(write_file_atomically(note, std::string(11, 'x')), IoError);
  }
  EXPECT_EQ(bytes_of(note), "two");
  EXPECT_FALSE(fs::exists(note + ".part"));
  EXPECT_THROW(write_file_atomically(path("absent/note.txt"), "x"), IoError);
}

}  // namespace
}  // namespace braid
