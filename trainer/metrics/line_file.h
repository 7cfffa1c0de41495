#pragma once

#include <cstdio>
#include <functional>
#include <string>

namespace braid {

// Cuts a file of lines in front of the first that is of a later step, or behind the last that is to stay: what is
// unreadable, or has no end, goes from the end of the file and stays in its middle, where good lines follow it. Nothing
// happens where there is no file. Needs no space: it also works on a full disk.   Errors: IoError.
enum class OldLine { kStays, kIsLater, kIsUnreadable };
void cut_lines(const std::string& path, const std::function<OldLine(const std::string& line)>& judge);

// A file to which lines are added. A line is in the file at once, whole or not at all.
class LineFile {
 public:
  explicit LineFile(const std::string& path);  // Errors: IoError
  ~LineFile();
  LineFile(const LineFile&) = delete;
  LineFile& operator=(const LineFile&) = delete;

  // Adds `text` and a line break in one unbuffered write. False if that failed: what of it got in is cut off again.
  bool append(const std::string& text);
  // To the disk.   Errors: IoError.
  void sync();
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  std::FILE* file_;
};

}  // namespace braid
