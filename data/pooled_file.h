#pragma once

#include <memory>
#include <string>

#include "kernels/core/raw_file.h"

namespace braid {

// A file to read now and then. Of all of them a process keeps the few open that were used last, so that there may be
// more than a process may open. One that is opened again must still be the same.   Any number of threads may use one.
class PooledFile {
 public:
  static constexpr size_t kMaxOpen = 128;  // of a process; the usual limit is 1024 for everything

  // Opens it.   Errors: DataError naming the path.
  explicit PooledFile(const std::string& path);
  ~PooledFile();
  PooledFile(const PooledFile&) = delete;
  PooledFile& operator=(const PooledFile&) = delete;

  const FileStamp& stamp() const { return stamp_; }
  // Stays open at least as long as the pointer.   Errors: DataError, also if it was replaced or changed since.
  std::shared_ptr<const RawFile> file() const;

 private:
  std::string path_;
  FileStamp stamp_;
};

}  // namespace braid
