#pragma once

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "kernels/core/temporary_folder.h"
#include "tests/messages.h"

namespace braid::testing {

// A test with a folder of its own, which goes with it.
class FolderTest : public ::testing::Test {
 protected:
  std::string path(const std::string& name) const { return temporary_ / name; }

  TemporaryFolder temporary_;
  const std::string folder_ = temporary_.path();
};

inline std::string bytes_of(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in) << path;
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

// In a new file: some file systems flush one to the disk that is emptied and written again, which takes ms.
inline void write_bytes(const std::filesystem::path& path, const std::string& bytes) {
  std::filesystem::create_directories(path.parent_path());
  std::filesystem::remove(path);
  std::ofstream(path, std::ios::binary) << bytes;
}

// While it lives this process is no longer root, who reads what is closed to all, but the owner of `folder` and all in it.
class OrdinaryUser {
 public:
  explicit OrdinaryUser(const std::string& folder) {
    if (geteuid() != 0) return;
    constexpr uid_t kNobody = 65534;
    EXPECT_EQ(lchown(folder.c_str(), kNobody, -1), 0);
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder))
      EXPECT_EQ(lchown(entry.path().c_str(), kNobody, -1), 0);
    EXPECT_EQ(seteuid(kNobody), 0);
    was_root_ = true;
  }
  ~OrdinaryUser() {
    if (was_root_) {
      EXPECT_EQ(seteuid(0), 0);
    }
  }
  OrdinaryUser(const OrdinaryUser&) = delete;
  OrdinaryUser& operator=(const OrdinaryUser&) = delete;

 private:
  bool was_root_ = false;
};

// No file may grow beyond `bytes` while it lives: what a full disk does, for every user and without a disk.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &before_);
    rlimit limit = before_;
    limit.rlim_cur = bytes;
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  void (*handler_)(int);
  rlimit before_{};
};

}  // namespace braid::testing
