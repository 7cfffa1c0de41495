#include "kernels/core/durable_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <iterator>
#include <utility>

#include "kernels/core/error.h"

namespace braid {
namespace {

namespace fs = std::filesystem;

constexpr size_t kGatheredBytes = size_t{256} << 10;
constexpr int64_t kWritebackBytes = int64_t{8} << 20;

std::string parent_of(const std::string& path) {
  const std::string parent = fs::path(path).parent_path().string();
  return parent.empty() ? "." : parent;
}

void remove_contents(const std::string& folder) {
  try {
    for (const fs::directory_entry& entry : fs::directory_iterator(folder)) fs::remove_all(entry.path());
  } catch (const fs::filesystem_error& e) {
    throw IoError(concat(e.path1().string(), ": cannot be removed: ", e.code().message()));
  }
}

// Whether it did, else errno says why.
bool write_all(int fd, const char* data, int64_t bytes) {
  for (int64_t done = 0; done < bytes;) {
    const ssize_t n = ::write(fd, data + done, static_cast<size_t>(bytes - done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    done += n;
  }
  return true;
}

}  // namespace

DurableFile::DurableFile(const std::string& path, int64_t bytes) : path_(path), part_(path + ".part") {
  std::error_code ignored;
  const fs::file_status found = fs::symlink_status(path_, ignored);
  // A device, renamed over, would be a file from then on.
  check<IoError>(!fs::exists(found) || fs::is_regular_file(found) || fs::is_symlink(found), path_,
                 ": is there already and is no file");
  fd_ = ::open(part_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0644);
  check<IoError>(fd_ >= 0, path_, ": cannot be created: ", reason(errno));
  int status = 0;
  do status = bytes > 0 ? ::posix_fallocate(fd_, 0, bytes) : 0;
  while (status == EINTR);
  // A file system that cannot reserve space reports a full disk when it is written.
  if (status == 0 || status == EOPNOTSUPP || status == EINVAL) return;
  const auto space = fs::space(parent_of(path_), ignored);
  ::close(std::exchange(fd_, -1));
  std::remove(part_.c_str());
  throw IoError(concat(path_, ": cannot be written: ", reason(status), " (", bytes, " bytes needed, ", space.available,
                       " free)"));
}

DurableFile::~DurableFile() {
  if (fd_ < 0) return;
  ::close(fd_);
  std::remove(part_.c_str());
}

void DurableFile::check_done(bool ok, const char* what) const {
  const int error = errno;
  check<IoError>(ok, path_, ": cannot be ", what, ": ", reason(error));
}

// A model of hundreds of small tensors would be as many calls of the system, and on a network as many messages.
void DurableFile::write(const void* data, int64_t bytes) {
  if (gathered_.size() + static_cast<size_t>(bytes) > kGatheredBytes) write_gathered();
  if (static_cast<size_t>(bytes) > kGatheredBytes) return write_out(data, bytes);
  const char* begin = static_cast<const char*>(data);
  gathered_.insert(gathered_.end(), begin, begin + bytes);
}

void DurableFile::write_gathered() {
  write_out(gathered_.data(), std::ssize(gathered_));
  gathered_.clear();
}

void DurableFile::write_out(const void* data, int64_t bytes) {
  check_done(write_all(fd_, static_cast<const char*>(data), bytes), "written");
  written_ += bytes;
  if (written_ - handed_over_ >= kWritebackBytes) start_writeback();
}

// The disk works while the rest is computed, instead of once fsync asks for everything. Only a hint: a system or file
// system that does not know it writes later, and what goes wrong is for fsync to say.
void DurableFile::start_writeback() {
  ::sync_file_range(fd_, handed_over_, written_ - handed_over_, SYNC_FILE_RANGE_WRITE);
  handed_over_ = written_;
}

void DurableFile::finish() {
  write_gathered();
  check_done(::fsync(fd_) == 0, "flushed to the disk");
  const bool closed = ::close(std::exchange(fd_, -1)) == 0;
  const int error = errno;
  if (closed && std::rename(part_.c_str(), path_.c_str()) == 0) return sync_folder_of(path_);
  const int status = closed ? errno : error;
  std::remove(part_.c_str());
  throw IoError(concat(path_, ": cannot be ", closed ? "given its name" : "closed", ": ", reason(status)));
}

void write_file_atomically(const std::string& path, const std::string& text) {
  DurableFile file(path, static_cast<int64_t>(text.size()));
  file.write(text.data(), static_cast<int64_t>(text.size()));
  file.finish();
}

void write_output(const std::string& path, const std::string& text) {
  std::error_code ignored;
  const fs::file_status found = fs::status(path, ignored);  // behind links
  if (!fs::exists(found) || fs::is_regular_file(found)) {
    const bool is_link = fs::is_symlink(fs::symlink_status(path, ignored));
    std::error_code error;
    const std::string file = is_link ? fs::weakly_canonical(path, error).string() : path;
    check<IoError>(!error, path, ": cannot be written: ", error.message());
    create_folder(parent_of(file));
    return write_file_atomically(file, text);
  }
  check<IoError>(!fs::is_directory(found), path, ": is a folder");
  const int fd = ::open(path.c_str(), O_WRONLY | O_NOCTTY | O_CLOEXEC);
  const bool ok = fd >= 0 && write_all(fd, text.data(), std::ssize(text));
  const int error = errno;
  if (fd >= 0) ::close(fd);
  check<IoError>(ok, path, ": cannot be written: ", reason(error));
}

void sync_folder(const std::string& folder) {
  const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  check<IoError>(fd >= 0, folder, ": cannot be opened: ", reason(errno));
  const int status = ::fsync(fd) == 0 ? 0 : errno;
  ::close(fd);
  check<IoError>(status == 0, folder, ": cannot be flushed to the disk: ", reason(status));
}

void sync_folder_of(const std::string& path) { sync_folder(parent_of(path)); }

void create_folder(const std::string& folder) {
  std::error_code error;
  if (fs::is_directory(folder, error)) return;
  const std::string parent = parent_of(folder);
  if (parent != folder) create_folder(parent);
  if (::mkdir(folder.c_str(), 0755) == 0) return sync_folder(parent);
  const int status = errno;
  check<IoError>(status == EEXIST && fs::is_directory(folder, error), folder,
                 ": the folder cannot be created: ", reason(status));
}

DurableFolder::DurableFolder(const std::string& path) {
  fs::path name = fs::absolute(path).lexically_normal();
  if (!name.has_filename()) name = name.parent_path();  // a/b/ is a/b
  path_ = name.string();
  temporary_ = (name.parent_path() / (".tmp-" + name.filename().string())).string();

  std::error_code error;
  const auto found = fs::symlink_status(name, error);
  check<IoError>(!fs::exists(found) || fs::is_directory(found), path_, ": is there already and is no folder");
  check<IoError>(!fs::exists(found) || fs::is_empty(name, error), path_, ": is there already and is not empty");
  create_folder(name.parent_path().string());
  const bool is_there = ::mkdir(temporary_.c_str(), 0755) == 0 || errno == EEXIST;
  check<IoError>(is_there, path_, ": the folder cannot be created: ", reason(errno));
  lock_ = ::open(temporary_.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  check<IoError>(lock_ >= 0, temporary_, ": cannot be opened: ", reason(errno));
  try {
    if (::flock(lock_, LOCK_EX | LOCK_NB) != 0)
      throw IoError(path_ +
                    ": cannot be written: " + (errno == EWOULDBLOCK ? "another process is writing it" : reason(errno)));
    remove_contents(temporary_);
  } catch (const IoError&) {
    ::close(lock_);
    throw;
  }
}

DurableFolder::~DurableFolder() {
  std::error_code ignored;
  if (!temporary_.empty()) fs::remove_all(temporary_, ignored);
  ::close(lock_);
}

void DurableFolder::finish() {
  const bool renamed = std::rename(temporary_.c_str(), path_.c_str()) == 0;
  check<IoError>(renamed, path_, ": cannot be given its name: ", reason(errno));
  try {
    sync_folder_of(path_);
  } catch (const IoError&) {
    std::rename(path_.c_str(), temporary_.c_str());
    throw;
  }
  temporary_.clear();
}

}  // namespace braid
