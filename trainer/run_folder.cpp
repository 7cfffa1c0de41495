#include "trainer/run_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "kernels/core/error.h"

namespace braid {

namespace fs = std::filesystem;

namespace {

std::string host_name() {
  char name[256] = "unknown host";
  gethostname(name, sizeof name - 1);
  return name;
}

std::string owner_of(const std::string& dir) {
  std::ifstream in(dir + "/OWNER.json");
  const auto json = nlohmann::json::parse(in, nullptr, false);
  if (!json.is_object()) return "another process";
  return concat("process ", json.value("pid", 0), " on ", json.value("host", "?"));
}

void sync_folder(const fs::path& folder) {
  const int fd = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  fsync(fd);
  close(fd);
}

}  // namespace

RunFolder::RunFolder(const std::string& dir) : dir_(dir) {
  std::error_code error;
  fs::create_directories(dir, error);
  check<IoError>(!error && fs::is_directory(dir), dir,
                 ": cannot create the run folder: ", error ? error.message() : "there is a file of this name");
  lock_ = open(path("LOCK").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  check<IoError>(lock_ >= 0, path("LOCK"), ": cannot be opened: ", std::strerror(errno));
  if (flock(lock_, LOCK_EX | LOCK_NB) != 0) {
    const int reason = errno;
    close(lock_);
    check<IoError>(reason == EWOULDBLOCK, path("LOCK"), ": cannot be locked: ", std::strerror(reason));
    throw RunFolderError(dir + ": the run folder is in use, held by " + owner_of(dir));
  }
  const nlohmann::json owner = {{"host", host_name()}, {"pid", static_cast<int>(getpid())}};
  write_file_atomically(path("OWNER.json"), owner.dump() + "\n");
}

RunFolder::~RunFolder() {
  if (lock_ >= 0) close(lock_);
}

bool RunFolder::has_run() const { return fs::exists(path("metrics.jsonl")) || fs::exists(path("checkpoints")); }

void write_file_atomically(const std::string& path, const std::string& text) {
  const std::string part = path + ".part";
  const int fd = open(part.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  check<IoError>(fd >= 0, part, ": cannot be created: ", std::strerror(errno));
  size_t done = 0;
  int reason = 0;
  while (done < text.size() && reason == 0) {
    const ssize_t n = write(fd, text.data() + done, text.size() - done);
    if (n >= 0) done += size_t(n);
    else if (errno != EINTR) reason = errno;
  }
  if (reason == 0 && fsync(fd) != 0) reason = errno;
  if (close(fd) != 0 && reason == 0) reason = errno;
  if (reason == 0 && std::rename(part.c_str(), path.c_str()) != 0) reason = errno;
  if (reason != 0) std::remove(part.c_str());
  check<IoError>(reason == 0, path, ": cannot be written: ", std::strerror(reason));
  sync_folder(fs::path(path).parent_path().empty() ? fs::path(".") : fs::path(path).parent_path());
}

}  // namespace braid
