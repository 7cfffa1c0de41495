#pragma once

#include <cstdint>
#include <string>
#include <utility>

namespace braid {

// Which file it is, and whether it has changed since.
struct FileStamp {
  uint64_t device = 0, inode = 0;
  int64_t bytes = 0, modified_ns = 0;
  bool operator==(const FileStamp&) const = default;
};

// A file whose bytes are read and written by position. Any number of threads may do so at a time.
class RawFile {
 public:
  // Errors: DataError naming the path, also for a folder or device.
  static RawFile open(const std::string& path);
  // Empties a file that exists.   Errors: IoError naming the path.
  static RawFile create(const std::string& path);
  // Errors: IoError naming the path.
  static RawFile open_to_write(const std::string& path);

  RawFile(RawFile&& other) noexcept;
  RawFile& operator=(RawFile&& other) noexcept;
  ~RawFile();

  const std::string& path() const { return path_; }
  int64_t size() const { return size_; }  // bytes, when it was opened
  FileStamp stamp() const;                // now.   Errors: DataError

  // Exactly these bytes. A failing read is tried three times.   Errors: DataError with path and position.
  void read(void* out, int64_t bytes, int64_t position) const;
  // Errors: IoError with path and position.
  void write(const void* data, int64_t bytes, int64_t position);
  // Until the bytes are on the disk.   Errors: IoError.
  void sync() const;

 private:
  RawFile(std::string path, int fd, int64_t size) : path_(std::move(path)), fd_(fd), size_(size) {}
  std::string path_;
  int fd_ = -1;
  int64_t size_ = 0;
};

}  // namespace braid
