#pragma once

#include <cstdint>
#include <string>

namespace braid {

// A run folder that this process owns: <dir>/LOCK is held (a kernel file lock, so it falls with the process) and
// <dir>/OWNER.json says who holds it since when. Rank 0 only. The folder and its parents are made if they are missing.
// Errors: RunFolderError naming host and process of the owner if another live process holds it; IoError if the folder
// cannot be made or written.
class RunFolder {
 public:
  explicit RunFolder(const std::string& dir);
  ~RunFolder();
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;

  const std::string& dir() const { return dir_; }
  std::string path(const std::string& name) const { return dir_ + "/" + name; }
  // Does it hold metrics or checkpoints of an earlier start?
  bool has_run() const;
  // The newest checkpoint that its metrics tell of, whether it is still there or not; -1: none.   Errors: IoError.
  int64_t last_saved_step() const;
  // Errors: IoError if the folder of this name is another one by now, or none: it was moved or removed.
  void check_is_there() const;

 private:
  std::string dir_;
  int lock_ = -1;
};

}  // namespace braid
