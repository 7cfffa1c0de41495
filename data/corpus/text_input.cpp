#include "data/corpus/text_input.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string_view>

#include "data/tokenizer/unicode.h"
#include "kernels/core/error.h"
#include "kernels/core/file_read.h"

namespace braid {
namespace {

namespace fs = std::filesystem;

bool is_json_lines(std::string name) {
  for (const char* packed : {".gz", ".zst"})
    if (name.ends_with(packed)) name.resize(name.size() - std::strlen(packed));
  return name.ends_with(".jsonl") || name.ends_with(".ndjson") || name.ends_with(".json");
}

class Lister {
 public:
  explicit Lister(const std::string& suffix) : suffix_(suffix) {}
  InputList list;

  // One that was named.
  void add(const fs::path& path) {
    const std::string complaint = try_to_add(path);
    check<DataError>(complaint.empty(), complaint);
  }
  bool has_been_in(const fs::path& path) const {
    std::error_code error;
    return fs::is_directory(path, error) && seen_.contains(fs::canonical(path, error).string());
  }

 private:
  // What is wrong with it, if it is neither a file nor a folder.
  std::string try_to_add(const fs::path& path) {
    std::error_code error;
    const fs::file_status status = fs::status(path, error);
    if (!fs::exists(status))
      return concat(path.string(), ": does not exist", fs::is_symlink(path, error) ? " (a broken link)" : "");
    if (fs::is_directory(status)) return add_folder(path), "";
    if (!fs::is_regular_file(status)) return concat(path.string(), ": is neither a file nor a folder");
    if (is_new(path))
      list.files.push_back({path.string(), is_json_lines(path.string()), static_cast<int64_t>(fs::file_size(path))});
    else ++list.met_again;
    return "";
  }

  bool is_new(const fs::path& path) {
    std::error_code error;
    const fs::path real = fs::canonical(path, error);
    check<DataError>(!error, path.string(), ": cannot be found: ", error.message());
    return seen_.insert(real.string()).second;
  }

  void add_folder(const fs::path& folder) {
    if (!is_new(folder)) return;  // by a link: its files are there already
    std::error_code error;
    std::vector<fs::path> entries;
    for (fs::directory_iterator entry(folder, error); !error && entry != fs::directory_iterator();
         entry.increment(error))
      entries.push_back(entry->path());
    check<DataError>(!error, folder.string(), ": the folder cannot be listed: ", error.message());
    std::sort(entries.begin(), entries.end());
    for (const fs::path& entry : entries)
      if (fs::is_directory(entry, error) || entry.string().ends_with(suffix_))
        if (std::string complaint = try_to_add(entry); !complaint.empty())
          list.no_files.push_back(std::move(complaint));
  }

  std::string suffix_;
  std::set<std::string> seen_;
};

}  // namespace

InputList list_inputs(const std::vector<std::string>& paths, const std::string& suffix) {
  Lister lister(suffix);
  for (const std::string& path : paths) {
    if (path == "-") {
      lister.list.files.push_back({path, true, 0});
      continue;
    }
    if (lister.has_been_in(path)) continue;
    const size_t before = lister.list.files.size();
    const int64_t again = lister.list.met_again;
    lister.add(path);
    std::sort(lister.list.files.begin() + static_cast<std::ptrdiff_t>(before), lister.list.files.end(),
              [](const TextInput& a, const TextInput& b) { return a.path < b.path; });
    check<DataError>(!fs::is_directory(path) || before < lister.list.files.size() || again < lister.list.met_again,
                     path, ": the folder holds no ", suffix.empty() ? "" : concat("*", suffix, " "), "files");
  }
  return std::move(lister.list);
}

std::vector<std::string> paths_of(const InputList& inputs) {
  check<DataError>(inputs.no_files.empty(), inputs.no_files.empty() ? "" : inputs.no_files.front());
  std::vector<std::string> paths;
  for (const TextInput& file : inputs.files) paths.push_back(file.path);
  return paths;
}

void check_outside(const std::string& out, const std::vector<std::string>& inputs) {
  const fs::path folder = fs::weakly_canonical(fs::absolute(out) / "");
  for (const std::string& input : inputs) {
    if (input == "-" || !fs::is_directory(input)) continue;
    const fs::path read = fs::canonical(input);
    const bool is_inside = std::mismatch(read.begin(), read.end(), folder.begin(), folder.end()).first == read.end();
    check<DataError>(!is_inside, out, ": lies in ", input, ", which is read; choose a folder outside of it");
  }
}

struct ByteSource::State {
  enum class Packing { kNone, kGzip, kZstd };

  explicit State(const std::string& p) : path(TextInput{.path = p}.name()) {
    {
      const FileRead call("open", path);
      fd = p == "-" ? ::dup(0) : ::open(p.c_str(), O_RDONLY | O_CLOEXEC);
    }
    check<DataError>(fd >= 0, path, ": cannot be opened: ", reason(errno));
    struct stat status = {};
    is_file = ::fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
    fill();
    const std::string_view head(in.data(), in_end);
    if (head.starts_with("\x1f\x8b")) {
      packing = Packing::kGzip;
      check<DataError>(inflateInit2(&gzip, 15 + 16) == Z_OK, path, ": gzip cannot be started");
    } else if (head.starts_with("\x28\xb5\x2f\xfd")) {
      packing = Packing::kZstd;
      zstd = ZSTD_createDStream();
      check<DataError>(zstd != nullptr, path, ": zstd cannot be started");
    }
  }
  ~State() {
    if (packing == Packing::kGzip) inflateEnd(&gzip);
    ZSTD_freeDStream(zstd);
    if (fd >= 0) ::close(fd);
  }

  // More bytes of the file behind those that are left; false at its end.
  bool fill() {
    std::memmove(in.data(), in.data() + in_begin, in_end - in_begin);
    in_end -= in_begin, in_begin = 0;
    ssize_t got;
    {
      std::optional<FileRead> call;  // what comes through a pipe waits for no disk
      if (is_file) call.emplace("read", path, static_cast<int64_t>(in.size() - in_end), taken);
      do got = ::read(fd, in.data() + in_end, in.size() - in_end);
      while (got < 0 && errno == EINTR);
    }
    check<DataError>(got >= 0, path, ": cannot be read: ", reason(errno));
    in_end += got, taken += got;
    return got > 0;
  }

  size_t read_plain(char* out, size_t bytes) {
    if (in_begin == in_end && !fill()) return 0;
    const size_t now = std::min(bytes, in_end - in_begin);
    std::memcpy(out, in.data() + in_begin, now);
    in_begin += now;
    return now;
  }

  size_t read_gzip(char* out, size_t bytes) {
    gzip.next_out = reinterpret_cast<Bytef*>(out);
    gzip.avail_out = static_cast<uInt>(bytes);
    while (gzip.avail_out == bytes) {
      if (in_begin == in_end && !fill()) {
        check<DataError>(!is_inside, path, ": the gzip file is cut short");
        return 0;
      }
      if (!is_inside) {  // one gzip file may follow the other
        inflateReset(&gzip);
        is_inside = true;
      }
      gzip.next_in = reinterpret_cast<Bytef*>(in.data() + in_begin);
      gzip.avail_in = static_cast<uInt>(in_end - in_begin);
      const int result = inflate(&gzip, Z_NO_FLUSH);
      in_begin = in_end - gzip.avail_in;
      check<DataError>(result == Z_OK || result == Z_STREAM_END || result == Z_BUF_ERROR, path,
                       ": the gzip file is damaged: ", gzip.msg ? gzip.msg : "no reason given");
      if (result == Z_STREAM_END) is_inside = false;
    }
    return bytes - gzip.avail_out;
  }

  size_t read_zstd(char* out, size_t bytes) {
    ZSTD_outBuffer to{out, bytes, 0};
    while (to.pos == 0) {
      if (in_begin == in_end && !fill() && !is_inside) return 0;
      ZSTD_inBuffer from{in.data() + in_begin, in_end - in_begin, 0};
      const bool had_input = from.size > 0;
      const size_t result = ZSTD_decompressStream(zstd, &to, &from);
      check<DataError>(!ZSTD_isError(result), path, ": the zstd file is damaged: ", ZSTD_getErrorName(result));
      in_begin += from.pos;
      is_inside = result != 0;
      check<DataError>(had_input || to.pos > 0 || !is_inside, path, ": the zstd file is cut short");
    }
    return to.pos;
  }

  std::string path;
  int fd = -1;
  bool is_file = false;
  Packing packing = Packing::kNone;
  std::vector<char> in = std::vector<char>(1 << 17);
  size_t in_begin = 0, in_end = 0;
  int64_t taken = 0;
  bool is_inside = false;  // of a compressed frame
  z_stream gzip{};
  ZSTD_DStream* zstd = nullptr;
};

ByteSource::ByteSource(const std::string& path) : state_(std::make_unique<State>(path)) {}
ByteSource::~ByteSource() = default;

bool ByteSource::read(std::string& out, size_t bytes) {
  State& s = *state_;
  const size_t begin = out.size();
  out.resize(begin + bytes);
  const auto got = s.packing == State::Packing::kNone   ? s.read_plain(out.data() + begin, bytes)
                   : s.packing == State::Packing::kGzip ? s.read_gzip(out.data() + begin, bytes)
                                                        : s.read_zstd(out.data() + begin, bytes);
  out.resize(begin + got);
  return got > 0;
}

int64_t ByteSource::bytes_taken() const {
  return state_->taken - static_cast<int64_t>(state_->in_end - state_->in_begin);
}

std::optional<std::string> text_of_line(std::string_view line, const std::string& key, int64_t& repaired,
                                        std::string& why) {
  std::string valid;
  if (valid_utf8_bytes(line) != line.size()) {
    repaired = repair_utf8(line, valid);
    line = valid;
  }
  const auto json = nlohmann::json::parse(line.begin(), line.end(), nullptr, false);
  if (json.is_discarded()) {
    why = "is not JSON";
  } else if (!json.is_object()) {
    why = "is no JSON object";
  } else if (const auto found = json.find(key); found == json.end()) {
    why = concat("has no key ", key);
  } else if (!found->is_string()) {
    why = concat(key, " is ", found->type_name(), ", not a string");
  } else {
    return found->get<std::string>();
  }
  return {};
}

void for_each_text(const InputList& inputs, const std::string& key, const std::function<void(std::string_view)>& text,
                   const std::function<void(const std::string&)>& unreadable) {
  constexpr size_t kBlock = size_t{1} << 20;
  for (const std::string& complaint : inputs.no_files) unreadable(complaint);
  for (const TextInput& file : inputs.files) {
    ByteSource source(file.path);
    std::string bytes, why;
    if (!file.is_json_lines) {
      while (source.read(bytes, kBlock)) {}
      why = why_not_text(bytes);
      if (why.empty()) text(bytes);
      else unreadable(concat(file.name(), ": ", why));
      continue;
    }
    int64_t line_number = 0, repaired = 0;
    const auto take = [&](std::string_view line) {
      ++line_number;
      if (line.find_first_not_of(" \t\r\n") == line.npos) return;
      if (const auto document = text_of_line(line, key, repaired, why)) text(*document);
      else unreadable(concat(file.name(), ":", line_number, ": ", why));
    };
    size_t searched = 0;
    while (source.read(bytes, kBlock)) {
      size_t begin = 0;
      for (size_t end; (end = bytes.find('\n', searched)) != bytes.npos; begin = searched = end + 1)
        take(std::string_view(bytes).substr(begin, end - begin));
      bytes.erase(0, begin);
      searched = bytes.size();
    }
    if (!bytes.empty()) take(bytes);
  }
}

std::string why_not_text(std::string_view bytes) {
  if (bytes.starts_with("\x1f\x8b")) return "is a gzip file, not text";
  if (bytes.starts_with("\xff\xfe") || bytes.starts_with("\xfe\xff")) return "is UTF-16, not UTF-8";
  const size_t nul = bytes.find('\0');
  if (bytes.starts_with("PAR1") && nul != bytes.npos)
    return "is a Parquet file, which Braid does not read; give its text as JSON lines";
  return nul == bytes.npos ? "" : concat("holds a NUL byte at ", nul, ", so it is not text");
}

}  // namespace braid
