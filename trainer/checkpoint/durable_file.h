#pragma once

#include <cstdint>
#include <string>

namespace braid {

// A file that is written once, front to back, and appears under its name whole or not at all: until finish() it is
// <path>.part, which the destructor removes.   Errors: IoError naming the file. After one the file is given up: an
// fsync that failed may succeed the next time although data is lost.
class DurableFile {
 public:
  // Reserves the space at once, so that a full disk shows before anything is written.
  DurableFile(const std::string& path, int64_t bytes);
  ~DurableFile();
  DurableFile(const DurableFile&) = delete;
  DurableFile& operator=(const DurableFile&) = delete;

  void write(const void* data, int64_t bytes);
  // To the disk, then the name, then the name to the disk.
  void finish();

 private:
  void check_done(bool ok, const char* what) const;

  std::string path_, part_;
  int fd_ = -1;
};

// Makes what was created, renamed or removed in a folder survive a loss of power.   Errors: IoError.
void sync_folder(const std::string& folder);

// The folder and its parents, as far as they are missing, safe from a loss of power.   Errors: IoError.
void create_folder(const std::string& folder);

}  // namespace braid
