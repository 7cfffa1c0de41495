#include "kernels/core/stored_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>
#include <vector>

#include "kernels/core/error.h"
#include "kernels/core/file_read.h"
#include "kernels/core/sha256.h"

namespace braid {
namespace {

constexpr int64_t kBlockBytes = int64_t{1} << 20;

// What keeps a process from opening a file that may be whole.
bool is_of_the_process(int error) {
  return error == EACCES || error == EPERM || error == EMFILE || error == ENFILE || error == ENOMEM;
}

}  // namespace

StoredFile::StoredFile(const std::string& path, Links links) : path_(path) {
  // O_NONBLOCK: opening a pipe must not wait for its writer. It changes nothing for a regular file.
  const int refuse = links == Links::kRefuse ? O_NOFOLLOW : 0;
  {
    const FileRead call("open", path_);
    fd_ = ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC | refuse);
  }
  check<IoError>(fd_ >= 0 || !is_of_the_process(errno), path, ": cannot be opened: ", reason(errno));
  check<CheckpointError>(fd_ >= 0, path, ": ",
                         errno == ELOOP    ? "is a link, expected a file"
                         : errno == ENOENT ? "is missing"
                                           : "cannot be opened: " + reason(errno));
  struct stat status = {};
  const bool is_file = ::fstat(fd_, &status) == 0 && S_ISREG(status.st_mode);
  if (!is_file) ::close(std::exchange(fd_, -1));
  check<CheckpointError>(is_file, path, ": expected a file, found ",
                         S_ISDIR(status.st_mode) ? "a folder" : "something else");
  size_ = status.st_size;
}

StoredFile::~StoredFile() {
  if (fd_ >= 0) ::close(fd_);
}

StoredFile::StoredFile(StoredFile&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)), size_(other.size_) {}

void StoredFile::read(void* out, int64_t bytes, int64_t position) const {
  const FileRead call("read", path_, bytes, position);
  for (int64_t done = 0; done < bytes;) {
    const ssize_t n = ::pread(fd_, static_cast<char*>(out) + done, static_cast<size_t>(bytes - done), position + done);
    if (n < 0 && errno == EINTR) continue;
    check<CheckpointError>(n > 0, path_, ": cannot read ", bytes, " bytes at byte ", position, ": ",
                           n == 0 ? "the file ends before them" : reason(errno));
    done += n;
  }
}

void StoredFile::forget_cached() const { ::posix_fadvise(fd_, 0, 0, POSIX_FADV_DONTNEED); }

std::string StoredFile::sha256() const {
  Sha256 digest;
  std::vector<char> block(std::min(kBlockBytes, size_));
  for (int64_t at = 0; at < size_; at += kBlockBytes) {
    const int64_t bytes = std::min(kBlockBytes, size_ - at);
    read(block.data(), bytes, at);
    digest.update(block.data(), static_cast<size_t>(bytes));
  }
  return digest.hex();
}

}  // namespace braid
