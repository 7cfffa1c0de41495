#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace braid {

// A file that is being opened or read, for as long as it lives: when a disk or the network does not answer, another
// thread can say what this process waits for. `what` and `path` must outlive
// it.   Any number at a time, of any threads.
class FileRead {
 public:
  FileRead(const char* what, const std::string& path, int64_t bytes = 0, int64_t position = 0);
  ~FileRead();
  FileRead(const FileRead&) = delete;
  FileRead& operator=(const FileRead&) = delete;

 private:
  friend std::optional<struct PendingRead> longest_read();
  const char* what_;
  const std::string& path_;
  int64_t bytes_, position_, begin_ns_;
  FileRead *before_ = nullptr, *behind_ = nullptr;
};

struct PendingRead {
  std::string path, what;  // what: "open", "read 4096 bytes at byte 512"
  int64_t begin_ns = 0;    // steady_clock; with the path it tells one call from another
  double seconds = 0;      // until now
};
// The one of this process that has been under way longest, if there is any.
std::optional<PendingRead> longest_read();

}  // namespace braid
