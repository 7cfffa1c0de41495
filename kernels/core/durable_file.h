#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace braid {

// A file that is written once, front to back, and appears under its name whole or not at all: until finish() it is
// <path>.part, which the destructor removes.   Errors: IoError naming the file. After one the file is given up: an
// fsync that failed may succeed the next time although data is lost. A link of this
// name is replaced, what is no file refused.
class DurableFile {
 public:
  // Reserves the space at once, so that a full disk shows before anything is written.
  DurableFile(const std::string& path, int64_t bytes);
  ~DurableFile();
  DurableFile(const DurableFile&) = delete;
  DurableFile& operator=(const DurableFile&) = delete;

  // Small pieces are gathered, so a full disk may show at a later call, or in finish().
  void write(const void* data, int64_t bytes);
  // To the disk, then the name, then the name to the disk.
  void finish();

 private:
  void check_done(bool ok, const char* what) const;
  void write_out(const void* data, int64_t bytes);
  void write_gathered();
  void start_writeback();

  std::string path_, part_;
  int fd_ = -1;
  std::vector<char> gathered_;
  int64_t written_ = 0, handed_over_ = 0;  // bytes written, and those of them that the disk was told to take
};

// A small text as a DurableFile.
void write_file_atomically(const std::string& path, const std::string& text);
// The same where a user said where to: with the folders above it, through links, and into a device or a pipe
// (/dev/stdout, /dev/null) as it is.
void write_output(const std::string& path, const std::string& text);

// A folder that is filled once and appears under its name whole or not at all: until finish() it is .tmp-NAME beside
// it, which the destructor removes; what a killed process left there is replaced. The name may be that of an empty
// folder.
// Errors: IoError naming the folder if the name is taken, another process is writing it, or the system refuses.
class DurableFolder {
 public:
  explicit DurableFolder(const std::string& path);
  ~DurableFolder();
  DurableFolder(const DurableFolder&) = delete;
  DurableFolder& operator=(const DurableFolder&) = delete;

  const std::string& temporary() const { return temporary_; }  // where its files are to be written, as DurableFiles
  void finish();

 private:
  std::string path_, temporary_;
  int lock_ = -1;  // on the temporary folder; it falls with the process
};

// Makes what was created, renamed or removed in a folder survive a loss of power.   Errors: IoError.
void sync_folder(const std::string& folder);
void sync_folder_of(const std::string& path);  // the folder that holds it

// The folder and its parents, as far as they are missing, safe from a loss of power.   Errors: IoError.
void create_folder(const std::string& folder);

}  // namespace braid
