#include "kernels/core/raw_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "kernels/core/error.h"
#include "kernels/core/file_read.h"

namespace braid {
namespace {

constexpr int kReadAttempts = 3;

int opened(const std::string& path, int flags) {
  const FileRead call("open", path);
  return ::open(path.c_str(), flags | O_CLOEXEC, 0666);
}

}  // namespace

RawFile RawFile::open(const std::string& path) {
  // O_NONBLOCK: opening a pipe must not wait for its writer. It changes nothing for a regular file.
  RawFile file(path, opened(path, O_RDONLY | O_NONBLOCK), 0);
  check<DataError>(file.fd_ >= 0, path, ": cannot be opened: ", reason(errno));
  struct stat status = {};
  check<DataError>(::fstat(file.fd_, &status) == 0, path, ": cannot be examined");
  check<DataError>(S_ISREG(status.st_mode), path, ": expected a file, found ",
                   S_ISDIR(status.st_mode) ? "a folder" : "something else");
  file.size_ = status.st_size;
  return file;
}

FileStamp RawFile::stamp() const {
  struct stat status = {};
  const bool examined = ::fstat(fd_, &status) == 0;
  check<DataError>(examined, path_, ": cannot be examined: ", reason(errno));
  return {status.st_dev, status.st_ino, status.st_size,
          int64_t{status.st_mtim.tv_sec} * 1'000'000'000 + status.st_mtim.tv_nsec};
}

RawFile RawFile::create(const std::string& path) {
  RawFile file(path, opened(path, O_RDWR | O_CREAT | O_TRUNC), 0);
  check<IoError>(file.fd_ >= 0, path, ": cannot be created: ", reason(errno));
  return file;
}

RawFile RawFile::open_to_write(const std::string& path) {
  RawFile file(path, opened(path, O_RDWR), 0);
  check<IoError>(file.fd_ >= 0, path, ": cannot be opened to write: ", reason(errno));
  return file;
}

RawFile::RawFile(RawFile&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)), size_(other.size_) {}

RawFile& RawFile::operator=(RawFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(fd_, other.fd_);
  std::swap(size_, other.size_);
  return *this;
}

RawFile::~RawFile() {
  if (fd_ >= 0) ::close(fd_);
}

void RawFile::read(void* out, int64_t bytes, int64_t position) const {
  const FileRead call("read", path_, bytes, position);
  int failures = 0;
  for (int64_t done = 0; done < bytes;) {
    const ssize_t n = ::pread(fd_, static_cast<char*>(out) + done, bytes - done, position + done);
    check<DataError>(n != 0, path_, ": was cut after it had been opened: bytes ", position, " to ", position + bytes,
                     " are not there");
    if (n > 0) done += n;
    else if (errno != EINTR && ++failures == kReadAttempts)
      throw DataError(concat(path_, ": cannot read ", bytes, " bytes at byte ", position, ": ", reason(errno)));
  }
}

void RawFile::write(const void* data, int64_t bytes, int64_t position) {
  for (int64_t done = 0; done < bytes;) {
    const ssize_t n = ::pwrite(fd_, static_cast<const char*>(data) + done, bytes - done, position + done);
    if (n > 0) done += n;
    else if (n == 0 || errno != EINTR)
      throw IoError(concat(path_, ": cannot write ", bytes, " bytes at byte ", position, ": ", reason(errno)));
  }
}

void RawFile::sync() const {
  if (::fsync(fd_) != 0) throw IoError(concat(path_, ": cannot be flushed to the disk: ", reason(errno)));
}

}  // namespace braid
