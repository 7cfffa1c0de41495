#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "data/sha256.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/checkpoint/manifest.h"
#include "trainer/checkpoint/safetensors.h"

namespace braid {

namespace fs = std::filesystem;

namespace {

// A regular file of the checkpoint, open for reading; never a link to somewhere else.
class ShardFile {
 public:
  explicit ShardFile(std::string path) : path_(std::move(path)) {
    fd_ = open(path_.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    check<CheckpointError>(fd_ >= 0, path_, ": cannot be opened: ", std::strerror(errno));
    struct stat status = {};
    const bool regular = fstat(fd_, &status) == 0 && S_ISREG(status.st_mode);
    bytes_ = status.st_size;
    if (!regular) {
      close(fd_);
      throw CheckpointError(path_ + ": is not a regular file");
    }
  }
  ~ShardFile() { close(fd_); }
  ShardFile(const ShardFile&) = delete;
  ShardFile& operator=(const ShardFile&) = delete;

  int64_t bytes() const { return bytes_; }
  void read(int64_t offset, void* out, int64_t bytes) const {
    char* at = static_cast<char*>(out);
    while (bytes > 0) {
      const ssize_t n = pread(fd_, at, static_cast<size_t>(bytes), offset);
      if (n < 0 && errno == EINTR) continue;
      check<CheckpointError>(n > 0, path_, ": cannot be read at byte ", offset, ": ",
                             n < 0 ? std::strerror(errno) : "it has become shorter");
      at += n;
      offset += n;
      bytes -= n;
    }
  }
  std::string sha256() const {
    Sha256 digest;
    std::vector<char> buffer(size_t{1} << 20);
    for (int64_t at = 0; at < bytes_; at += static_cast<int64_t>(buffer.size())) {
      const int64_t n = std::min<int64_t>(buffer.size(), bytes_ - at);
      read(at, buffer.data(), n);
      digest.update(buffer.data(), static_cast<size_t>(n));
    }
    return digest.hex();
  }

 private:
  std::string path_;
  int fd_ = -1;
  int64_t bytes_ = 0;
};

}  // namespace

struct CheckpointReader::State {
  std::string path;
  Manifest manifest;
  std::vector<LogicalTensor> tensors;
  struct Shard {
    std::string path, sha256;
    std::unique_ptr<ShardFile> file;
    SafetensorsHeader header;
    bool verified = false;
  };
  std::map<std::string, Shard> shards;

  void verify(Shard& shard) {
    if (shard.verified) return;
    check<CheckpointError>(shard.file->sha256() == shard.sha256, shard.path,
                           ": its bytes do not match the digest in the manifest; the file is damaged");
    shard.verified = true;
  }
};

CheckpointReader::CheckpointReader(const std::string& path) : state_(std::make_unique<State>()) {
  State& s = *state_;
  s.path = path;
  const std::string manifest_path = (fs::path(path) / kManifestName).string();
  std::ifstream in(manifest_path, std::ios::binary);
  check<CheckpointError>(bool(in), path, ": is not a checkpoint: it has no readable ", kManifestName);
  std::stringstream text;
  text << in.rdbuf();
  s.manifest = Manifest::parse(text.str(), manifest_path);

  for (const Manifest::File& file : s.manifest.files) {
    State::Shard& shard = s.shards[file.name];
    shard.path = (fs::path(path) / file.name).string();
    shard.sha256 = file.sha256;
    shard.file = std::make_unique<ShardFile>(shard.path);
    check<CheckpointError>(shard.file->bytes() == file.bytes, shard.path, ": is ", shard.file->bytes(),
                           " bytes long, the manifest says ", file.bytes);
    shard.header = read_safetensors_header(shard.path);
  }
  for (const auto& [name, tensor] : s.manifest.tensors) {
    for (const Manifest::Extent& e : tensor.extents) {
      const auto shard = s.shards.find(e.file);
      check<CheckpointError>(shard != s.shards.end(), manifest_path, ": tensor ", name, " lies in ", e.file,
                             ", which is not listed");
      const auto entry = shard->second.header.entries.find(e.entry);
      check<CheckpointError>(entry != shard->second.header.entries.end() && entry->second.dtype == tensor.dtype &&
                                 entry->second.end - entry->second.begin == (e.end - e.begin) * size_of(tensor.dtype),
                             shard->second.path, ": holds no tensor ", e.entry,
                             " of the dtype and size the manifest says");
    }
    s.tensors.push_back({name, tensor.dtype, tensor.shape});
  }
}

CheckpointReader::~CheckpointReader() = default;
CheckpointReader::CheckpointReader(CheckpointReader&&) noexcept = default;

const std::string& CheckpointReader::path() const { return state_->path; }
const CheckpointInfo& CheckpointReader::info() const { return state_->manifest.info; }
const std::vector<CheckpointReader::LogicalTensor>& CheckpointReader::tensors() const { return state_->tensors; }
bool CheckpointReader::contains(const std::string& name) const { return state_->manifest.tensors.count(name) > 0; }

void CheckpointReader::read(CheckpointSlice& slice) const {
  const auto found = state_->manifest.tensors.find(slice.name);
  check<CheckpointError>(found != state_->manifest.tensors.end(), state_->path, ": holds no tensor ", slice.name);
  const Manifest::LogicalTensor& tensor = found->second;
  check<CheckpointError>(tensor.shape == slice.shape && tensor.dtype == slice.data.dtype(), state_->path, ": tensor ",
                         slice.name, " is ", name_of(tensor.dtype), ' ', tensor.shape.to_string(), ", expected ",
                         name_of(slice.data.dtype()), ' ', slice.shape.to_string());
  const int64_t element_bytes = size_of(tensor.dtype);
  char* out = static_cast<char*>(slice.data.raw());
  for (const Manifest::Extent& e : tensor.extents) {
    const int64_t begin = std::max(slice.begin, e.begin), end = std::min(slice.end, e.end);
    if (begin >= end) continue;
    State::Shard& shard = state_->shards.at(e.file);
    state_->verify(shard);
    const int64_t offset = shard.header.data_offset + shard.header.entries.at(e.entry).begin;
    shard.file->read(offset + (begin - e.begin) * element_bytes, out + (begin - slice.begin) * element_bytes,
                     (end - begin) * element_bytes);
  }
}

void CheckpointReader::verify() const {
  for (auto& [name, shard] : state_->shards) state_->verify(shard);
}

}  // namespace braid
