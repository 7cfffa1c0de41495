#pragma once

#include <cstdio>
#include <functional>
#include <string>

namespace braid {

// Cuts a file of lines in front of the first one for which keep(line) is false or that has no end; nothing happens
// where there is no file. Needs no space: it also works on a full disk.   Errors: IoError.
void cut_lines(const std::string& path, const std::function<bool(const std::string& line)>& keep);

// A file to which lines are added. A line is in the file at once, whole or not at all.
class LineFile {
 public:
  explicit LineFile(const std::string& path);  // Errors: IoError
  ~LineFile();
  LineFile(const LineFile&) = delete;
  LineFile& operator=(const LineFile&) = delete;

  // Adds `text` and a line break in one unbuffered write. False if that failed: what of it got in is cut off again.
  bool append(const std::string& text);

 private:
  std::FILE* file_;
};

}  // namespace braid
