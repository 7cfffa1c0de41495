#include "trainer/metrics/line_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <new>
#include <tuple>

#include "kernels/core/error.h"
#include "kernels/core/file_text.h"
#include "kernels/core/stream.h"

namespace braid {

namespace fs = std::filesystem;

void cut_lines(const std::string& path, const std::function<OldLine(const std::string& line)>& judge) {
  std::error_code error;
  if (!fs::is_regular_file(path, error)) return;
  Loud<std::ifstream> in(path, std::ios::binary);
  check<IoError>(in.is_open(), path, ": cannot be read");
  uintmax_t kept_bytes = 0, bytes = 0;
  reading<IoError>(path, [&] {
    for (std::string line; std::getline(in, line) && !in.eof();) {
      const OldLine verdict = judge(line);
      if (verdict == OldLine::kIsLater) break;
      bytes += line.size() + 1;
      if (verdict == OldLine::kStays) kept_bytes = bytes;
    }
  });
  in.close();
  fs::resize_file(path, kept_bytes, error);
  check<IoError>(!error, path, ": cannot be cut to its first ", kept_bytes, " bytes: ", error.message());
}

LineFile::LineFile(const std::string& path) : path_(path) {
  // Opening a pipe would wait for a reader; writing to one with a reader may wait for him.
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK, 0666);
  check<IoError>(fd >= 0, path,
                 ": cannot be opened for writing: ", errno == ENXIO ? "it is a pipe that nobody reads" : reason(errno));
  fcntl(fd, F_SETFL, O_APPEND);
  file_ = fdopen(fd, "a");
  if (!file_) ::close(fd), throw std::bad_alloc();
  std::setvbuf(file_, nullptr, _IONBF, 0);
}

LineFile::~LineFile() { std::fclose(file_); }

void LineFile::sync() {
  // What is no file on a disk, as a pipe, has nothing to wait for.
  const bool done = fdatasync(fileno(file_)) == 0 || errno == EINVAL || errno == EROFS;
  check<IoError>(done, path_, ": cannot be brought to the disk: ", reason(errno));
}

bool LineFile::append(const std::string& text) {
  struct stat before = {};
  const bool known = fstat(fileno(file_), &before) == 0 && S_ISREG(before.st_mode);
  const std::string line = text + '\n';
  if (std::fwrite(line.data(), 1, line.size(), file_) == line.size()) return true;
  const int error = errno;
  std::clearerr(file_);
  // What of the line did get in must not become the beginning of the next one.
  if (known) std::ignore = ftruncate(fileno(file_), before.st_size);
  errno = error;
  return false;
}

}  // namespace braid
