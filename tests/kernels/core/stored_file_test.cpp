#include "kernels/core/stored_file.h"

#include <sys/stat.h>

#include "kernels/core/error.h"
#include "kernels/core/sha256.h"
#include "tests/file_testing.h"

namespace braid {
namespace {

namespace fs = std::filesystem;
using namespace braid::testing;

class StoredFileTest : public FolderTest {
 protected:
  std::string refusal(const std::string& name, Links links = Links::kRefuse) {
    return message_of<CheckpointError>([&] { StoredFile(path(name), links); });
  }
};

TEST_F(StoredFileTest, ReadsByPosition) {
  write_bytes(path("f"), "0123456789");
  StoredFile opened(path("f"), Links::kRefuse);
  const StoredFile file = std::move(opened);
  EXPECT_EQ(file.size(), 10);
  EXPECT_EQ(file.path(), path("f"));
  std::string text(4, ' ');
  file.read(text.data(), 4, 6);
  EXPECT_EQ(text, "6789");
  file.read(text.data(), 0, 10);
  EXPECT_EQ(message_of<CheckpointError>([&] { file.read(text.data(), 4, 7); }),
            path("f") + ": cannot read 4 bytes at byte 7: the file ends before them");
}

TEST_F(StoredFileTest, DigestsAllOfIt) {
  for (size_t size : {size_t{0}, size_t{5}, size_t{1} << 20, (size_t{1} << 20) + 1}) {
    std::string bytes(size, 'x');
    if (size > 0) bytes.back() = 'y';
    write_bytes(path("f"), bytes);
    EXPECT_EQ(StoredFile(path("f"), Links::kRefuse).sha256(), sha256(bytes)) << size;
  }
}

TEST_F(StoredFileTest, WhatThisProcessMayNotOpenIsNotDamaged) {
  write_bytes(path("f"), "x");
  fs::permissions(path("f"), fs::perms::none);
  {
    const OrdinaryUser user(folder_);
    EXPECT_EQ(message_of<IoError>([&] { StoredFile(path("f"), Links::kRefuse); }),
              path("f") + ": cannot be opened: Permission denied");
  }
  fs::permissions(path("f"), fs::perms::owner_read);
  rlimit before{};
  getrlimit(RLIMIT_NOFILE, &before);
  const rlimit none = {0, before.rlim_max};
  setrlimit(RLIMIT_NOFILE, &none);
  EXPECT_EQ(message_of<IoError>([&] { StoredFile(path("f"), Links::kRefuse); }),
            path("f") + ": cannot be opened: Too many open files");
  setrlimit(RLIMIT_NOFILE, &before);
}

TEST_F(StoredFileTest, OpensRegularFilesOnly) {
  EXPECT_EQ(refusal("absent"), path("absent") + ": is missing");
  fs::create_directory(path("folder"));
  EXPECT_EQ(refusal("folder"), path("folder") + ": expected a file, found a folder");
  ASSERT_EQ(mkfifo(path("pipe").c_str(), 0600), 0);
  EXPECT_EQ(refusal("pipe"), path("pipe") + ": expected a file, found something else") << "and does not wait for it";
  write_bytes(path("f"), "x");
  fs::create_symlink(path("f"), path("link"));
  EXPECT_EQ(refusal("link"), path("link") + ": is a link, expected a file");
  EXPECT_EQ(StoredFile(path("link"), Links::kFollow).size(), 1);
  fs::create_symlink("/dev/zero", path("device"));
  EXPECT_EQ(refusal("device", Links::kFollow), path("device") + ": expected a file, found something else");
  write_bytes(path("file"), "x");
  expect_contains(refusal("file/below"), "cannot be opened");
}

}  // namespace
}  // namespace braid
