#include "data/corpus/hdf5_process.h"

#include <hdf5.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstring>
#include <utility>
#include <vector>

#include "kernels/core/error.h"
#include "kernels/core/file_read.h"

namespace braid {

enum class Hdf5Process::What : int64_t { kSize, kRead, kInteger, kText };

struct Hdf5Process::Request {
  What what;
  int64_t begin, end;
  char name[64];
};

// Followed by `bytes` of the value, or of the sentence that says what went wrong.
struct Hdf5Process::Answer {
  enum class Kind : int64_t { kValue, kNothing, kError } kind;
  int64_t bytes;
};

namespace {

constexpr time_t kPatienceSeconds = 300;
// A chunk that is larger would be unpacked once for every read of it.
constexpr size_t kChunkCacheBytes = size_t{128} << 20;

bool send_all(int socket, const void* data, size_t bytes) {
  for (const char* at = static_cast<const char*>(data); bytes > 0;) {
    const ssize_t sent = ::send(socket, at, bytes, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) return false;
    at += sent, bytes -= static_cast<size_t>(sent);
  }
  return true;
}

bool receive_all(int socket, void* data, size_t bytes) {
  for (char* at = static_cast<char*>(data); bytes > 0;) {
    const ssize_t received = ::recv(socket, at, bytes, 0);
    if (received < 0 && errno == EINTR) continue;
    if (received <= 0) return false;
    at += received, bytes -= static_cast<size_t>(received);
  }
  return true;
}

std::string bytes_of(int64_t value) { return {reinterpret_cast<const char*>(&value), sizeof value}; }

}  // namespace

// The other process. It lives no longer than a conversion, so what it opens it leaves open.
class Hdf5Process::Server {
 public:
  Server(const std::string& path, int socket) : path_(path), socket_(socket) {}

  void serve() {
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
    for (Request request; receive_all(socket_, &request, sizeof request);) {
      std::optional<std::string> value;
      bool is_error = false;
      try {
        if (root_ < 0) open();
        value = answer(request);
      } catch (const std::exception& e) {
        value = e.what();
        is_error = true;
      }
      const Answer head{is_error ? Answer::Kind::kError
                        : value  ? Answer::Kind::kValue
                                 : Answer::Kind::kNothing,
                        value ? static_cast<int64_t>(value->size()) : 0};
      if (!send_all(socket_, &head, sizeof head) || (value && !send_all(socket_, value->data(), value->size()))) return;
    }
  }

 private:
  void check_hdf5(bool ok, const std::string& what) const {
    if (ok) return;
    std::string reason = "no reason given";
    const auto visit = [](unsigned, const H5E_error2_t* error, void* text) -> herr_t {
      *static_cast<std::string*>(text) = error->desc;
      return 1;
    };
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, visit, &reason);
    throw DataError(concat(path_, ": ", what, ": HDF5: ", reason));
  }

  void open() {
    const hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    H5Pset_file_locking(access, false, true);
    const hid_t file = H5Fopen(path_.c_str(), H5F_ACC_RDONLY, access);
    check_hdf5(file >= 0, "cannot be opened");
    root_ = H5Gopen2(file, "/", H5P_DEFAULT);
    check_hdf5(root_ >= 0, "has no root group");
  }

  std::optional<std::string> answer(const Request& request) {
    switch (request.what) {
      case What::kSize: return size(request.name);
      case What::kRead: return read(request);
      case What::kInteger: return attribute(request.name, true);
      case What::kText: return attribute(request.name, false);
    }
    return {};
  }

  std::optional<std::string> size(const std::string& name) {
    if (H5Lexists(root_, name.c_str(), H5P_DEFAULT) <= 0) return {};
    const std::string where = concat(path_, ": ", name);
    H5L_info_t link;
    check_hdf5(H5Lget_info(root_, name.c_str(), &link, H5P_DEFAULT) >= 0, name + " cannot be read");
    check<DataError>(link.type == H5L_TYPE_HARD || link.type == H5L_TYPE_SOFT, where, ": is a link to another file");
    const hid_t access = H5Pcreate(H5P_DATASET_ACCESS);
    H5Pset_chunk_cache(access, H5D_CHUNK_CACHE_NSLOTS_DEFAULT, kChunkCacheBytes, H5D_CHUNK_CACHE_W0_DEFAULT);
    Dataset dataset{name, H5Dopen2(root_, name.c_str(), access), -1};
    check_hdf5(dataset.id >= 0, name + " is no dataset");
    const hid_t creation = H5Dget_create_plist(dataset.id);
    check<DataError>(H5Pget_layout(creation) != H5D_VIRTUAL && H5Pget_external_count(creation) <= 0, where,
                     ": its values are in other files");
    for (int i = 0; i < H5Pget_nfilters(creation); ++i) {
      unsigned flags = 0;
      size_t values = 0;
      std::array<char, 64> filter = {};
      const H5Z_filter_t id =
          H5Pget_filter2(creation, i, &flags, &values, nullptr, filter.size(), filter.data(), nullptr);
      check<DataError>(H5Zfilter_avail(id) > 0, where, ": was written with filter ", id, " (", filter.data(),
                       "), which the HDF5 library has not here");
    }
    check<DataError>(H5Tget_class(H5Dget_type(dataset.id)) == H5T_INTEGER, where, ": expected integers");
    dataset.space = H5Dget_space(dataset.id);
    const int rank = H5Sget_simple_extent_ndims(dataset.space);
    check<DataError>(rank == 1, where, ": expected 1 dimension, found ", rank);
    datasets_.push_back(dataset);
    return bytes_of(H5Sget_simple_extent_npoints(dataset.space));
  }

  std::string read(const Request& request) {
    const auto dataset =
        std::find_if(datasets_.begin(), datasets_.end(), [&](const Dataset& d) { return d.name == request.name; });
    check<DataError>(dataset != datasets_.end(), path_, ": ", request.name, " was not opened");
    const auto begin = static_cast<hsize_t>(request.begin), count = static_cast<hsize_t>(request.end - request.begin);
    std::string values(8 * count, '\0');
    if (count == 0) return values;
    const hid_t memory = H5Screate_simple(1, &count, nullptr);
    H5Sselect_hyperslab(dataset->space, H5S_SELECT_SET, &begin, nullptr, &count, nullptr);
    const bool ok = H5Dread(dataset->id, H5T_NATIVE_INT64, memory, dataset->space, H5P_DEFAULT, values.data()) >= 0;
    check_hdf5(ok, concat(request.name, "[", request.begin, " to ", request.end - 1, "] cannot be read"));
    H5Sclose(memory);
    return values;
  }

  std::optional<std::string> attribute(const std::string& name, bool is_integer) {
    if (H5Aexists(root_, name.c_str()) <= 0) return {};
    const std::string where = concat(path_, ": attribute ", name);
    const hid_t attribute = H5Aopen(root_, name.c_str(), H5P_DEFAULT);
    check_hdf5(attribute >= 0, concat("attribute ", name, " cannot be read"));
    const hid_t type = H5Aget_type(attribute);
    const hssize_t count = H5Sget_simple_extent_npoints(H5Aget_space(attribute));
    check<DataError>(count == 1, where, ": expected one value, found ", count);
    const H5T_class_t kind = H5Tget_class(type);
    check<DataError>(kind == (is_integer ? H5T_INTEGER : H5T_STRING), where, ": expected ",
                     is_integer ? "an integer" : "a string");
    if (is_integer) {
      int64_t value = 0;
      check_hdf5(H5Aread(attribute, H5T_NATIVE_INT64, &value) >= 0, concat("attribute ", name, " cannot be read"));
      return bytes_of(value);
    }
    if (H5Tis_variable_str(type) > 0) {
      char* value = nullptr;
      check_hdf5(H5Aread(attribute, type, &value) >= 0 && value, concat("attribute ", name, " cannot be read"));
      return value;
    }
    std::string value(H5Tget_size(type) + 1, '\0');
    check_hdf5(H5Aread(attribute, type, value.data()) >= 0, concat("attribute ", name, " cannot be read"));
    return value.c_str();
  }

  struct Dataset {
    std::string name;
    hid_t id, space;
  };
  std::string path_;
  int socket_;
  hid_t root_ = -1;
  std::vector<Dataset> datasets_;
};

Hdf5Process::Hdf5Process(const std::string& path) : path_(path) {
  int ends[2];
  check<IoError>(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0, path,
                 ": no socket for its reader: ", reason(errno));
  process_ = ::fork();
  const int status = errno;
  if (process_ == 0) {
    ::close(ends[0]);
    std::signal(SIGINT, SIG_IGN);  // it ends with its parent
    const rlimit no_core = {0, 0};
    ::setrlimit(RLIMIT_CORE, &no_core);
    Server(path, ends[1]).serve();
    ::_exit(0);
  }
  ::close(ends[1]);
  socket_ = ends[0];
  if (process_ < 0) ::close(socket_);
  check<IoError>(process_ > 0, path, ": no process for its reader: ", reason(status));
  const timeval patience{kPatienceSeconds, 0};
  ::setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
}

Hdf5Process::~Hdf5Process() {
  ::close(socket_);
  if (process_ < 0) return;
  ::kill(process_, SIGKILL);
  ::waitpid(process_, nullptr, 0);
}

void Hdf5Process::report_end() {
  const bool is_silent = errno == EAGAIN || errno == EWOULDBLOCK;
  if (is_silent) ::kill(process_, SIGKILL);
  int status = 0;
  ::waitpid(std::exchange(process_, -1), &status, 0);
  if (is_silent) throw DataError(concat(path_, ": HDF5 gave no answer for ", kPatienceSeconds, " s"));
  throw DataError(concat(path_, ": HDF5 was brought down by it",
                         WIFSIGNALED(status) ? concat(" (signal ", WTERMSIG(status), ")") : "", ", so it is damaged"));
}

std::optional<std::string> Hdf5Process::ask(What what, const std::string& name, int64_t begin, int64_t end) {
  check<DataError>(process_ > 0, path_, ": its reader has ended");
  const FileRead call("read", path_);
  Request request{what, begin, end, {}};
  name.copy(request.name, sizeof request.name - 1);
  Answer head;
  errno = 0;
  if (!send_all(socket_, &request, sizeof request) || !receive_all(socket_, &head, sizeof head)) report_end();
  if (head.kind == Answer::Kind::kNothing) return {};
  std::string value(static_cast<size_t>(head.bytes), '\0');
  errno = 0;
  if (!receive_all(socket_, value.data(), value.size())) report_end();
  if (head.kind == Answer::Kind::kError) throw DataError(value);
  return value;
}

namespace {

std::optional<int64_t> number_of(const std::optional<std::string>& bytes) {
  if (!bytes) return {};
  int64_t value = 0;
  std::memcpy(&value, bytes->data(), sizeof value);
  return value;
}

}  // namespace

std::optional<int64_t> Hdf5Process::size(const std::string& dataset) { return number_of(ask(What::kSize, dataset)); }
std::optional<int64_t> Hdf5Process::integer(const std::string& attribute) {
  return number_of(ask(What::kInteger, attribute));
}
std::optional<std::string> Hdf5Process::text(const std::string& attribute) { return ask(What::kText, attribute); }

void Hdf5Process::read(const std::string& dataset, int64_t begin, int64_t end, int64_t* out) {
  const auto values = ask(What::kRead, dataset, begin, end);
  std::memcpy(out, values->data(), values->size());
}

}  // namespace braid
