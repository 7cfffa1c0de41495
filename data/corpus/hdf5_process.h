#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>

namespace braid {

// An HDF5 file as libhdf5 reads it: chunked, compressed, of any integer type and byte order. In a process of its own,
// as libhdf5 can be brought down by a damaged file; that process then ends, not this one. What lies in other files
// (external links and storage, virtual datasets) is refused.
// Errors: DataError naming the file, also where libhdf5 fails, ends, or has no answer for five minutes.
class Hdf5Process {
 public:
  explicit Hdf5Process(const std::string& path);
  ~Hdf5Process();
  Hdf5Process(const Hdf5Process&) = delete;
  Hdf5Process& operator=(const Hdf5Process&) = delete;

  // Elements of a 1-D dataset of integers in the root group; nothing if there is no such name.
  std::optional<int64_t> size(const std::string& dataset);
  // Its elements [begin, end); what is beyond 64 signed bits becomes INT64_MAX.
  void read(const std::string& dataset, int64_t begin, int64_t end, int64_t* out);
  // Attributes of the root group: one integer, one string of any kind; nothing if there is none.
  std::optional<int64_t> integer(const std::string& attribute);
  std::optional<std::string> text(const std::string& attribute);

 private:
  enum class What : int64_t;
  struct Request;
  struct Answer;
  class Server;
  std::optional<std::string> ask(What what, const std::string& name, int64_t begin = 0, int64_t end = 0);
  [[noreturn]] void report_end();

  std::string path_;
  int socket_ = -1;
  pid_t process_ = -1;
};

}  // namespace braid
