#include "trainer/run/run_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "kernels/core/durable_file.h"
#include "kernels/core/error.h"
#include "kernels/core/file_text.h"
#include "kernels/core/process_info.h"
#include "kernels/core/stream.h"
#include "trainer/checkpoint/checkpoint.h"

namespace braid {

namespace fs = std::filesystem;

namespace {

constexpr const char* kOwnerName = "OWNER.json";

std::string this_process() {
  const nlohmann::json owner = {{"host", host_name()}, {"pid", getpid()}, {"since", utc_now()}};
  return owner.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

std::string owner_of(const std::string& path) {
  const auto json = nlohmann::json::parse(file_text(path), nullptr, false);
  try {
    return concat("process ", json.at("pid").get<int64_t>(), " on ", json.at("host").get<std::string>(), " since ",
                  json.at("since").get<std::string>());
  } catch (const nlohmann::json::exception&) {
    return concat("another process (", path, " does not say which)");
  }
}

}  // namespace

RunFolder::RunFolder(const std::string& dir) : dir_(dir) {
  create_folder(dir);
  const std::string lock_path = path("LOCK");
  lock_ = ::open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  check<IoError>(lock_ >= 0, lock_path, ": cannot be opened: ", reason(errno));
  try {
    if (::flock(lock_, LOCK_EX | LOCK_NB) != 0) {
      const int error = errno;
      check<IoError>(error == EWOULDBLOCK, lock_path, ": cannot be locked: ", reason(error));
      throw RunFolderError(dir + ": the run folder is in use by " + owner_of(path(kOwnerName)));
    }
    std::error_code none;
    const std::string checkpoints = path("checkpoints");
    check<IoError>(!fs::exists(checkpoints, none) || fs::is_directory(checkpoints, none), checkpoints,
                   ": is no folder, and checkpoints go into one of this name");
    // Shows as well, before anything is computed, that the folder can be written.
    write_file_atomically(path(kOwnerName), this_process());
  } catch (const Error&) {
    ::close(lock_);
    throw;
  }
}

RunFolder::~RunFolder() { ::close(lock_); }

bool RunFolder::has_run() const {
  std::error_code error;
  const auto metrics_bytes = fs::file_size(path("metrics.jsonl"), error);
  return (!error && metrics_bytes > 0) || !list_checkpoints(path("checkpoints")).empty();
}

int64_t RunFolder::last_saved_step() const {
  const std::string metrics = path("metrics.jsonl");
  int64_t step = -1;
  Loud<std::ifstream> in(metrics);
  reading<IoError>(metrics, [&] {
    for (std::string text; std::getline(in, text);) {
      const auto line = nlohmann::json::parse(text, nullptr, false);  // one that is damaged tells nothing
      if (!line.is_object() || !line.contains("checkpoint/step")) continue;
      if (const auto& saved = line["checkpoint/step"]; saved.is_number_integer()) step = saved.get<int64_t>();
    }
  });
  return step;
}

void RunFolder::check_is_there() const {
  struct stat own = {}, found = {};
  const bool is_own = ::fstat(lock_, &own) == 0 && ::stat(path("LOCK").c_str(), &found) == 0 &&
                      own.st_dev == found.st_dev && own.st_ino == found.st_ino;
  check<IoError>(is_own, dir_,
                 ": is not the run folder any more, it was moved or removed while the run went on; go on with "
                 "--resume where it is now");
}

}  // namespace braid
