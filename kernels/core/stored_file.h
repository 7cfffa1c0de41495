#pragma once

#include <cstdint>
#include <string>

namespace braid {

enum class Links { kFollow, kRefuse };

// A regular file, open for reading by position. What a checkpoint names is opened with Links::kRefuse: a link, pipe,
// device or folder in its place is an error, and opening one neither blocks nor has an effect.
// Errors: CheckpointError naming the file; IoError where it may be whole, but this process may not open it, or no more.
class StoredFile {
 public:
  StoredFile(const std::string& path, Links links);
  ~StoredFile();
  StoredFile(StoredFile&& other) noexcept;
  StoredFile& operator=(StoredFile&&) = delete;

  const std::string& path() const { return path_; }
  int64_t size() const { return size_; }  // bytes, when it was opened

  void read(void* out, int64_t bytes, int64_t position) const;
  std::string sha256() const;  // of all of it
  // The next reads come from the disk, of what is on it and as far as the system allows.
  void forget_cached() const;

 private:
  std::string path_;
  int fd_ = -1;
  int64_t size_ = 0;
};

}  // namespace braid
