#include <algorithm>
#include <filesystem>
#include <map>

#include "kernels/core/float_types.h"
#include "kernels/core/stored_file.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/checkpoint/manifest.h"
#include "trainer/checkpoint/safetensors.h"

namespace braid {

namespace fs = std::filesystem;

namespace {

constexpr int64_t kMaxManifestBytes = int64_t{1} << 28;
constexpr int64_t kConvertElements = int64_t{1} << 17;  // converted at a time

struct Shard {
  StoredFile file;
  std::string sha256;
  SafetensorsHeader header;
  int64_t used_entries = 0;
  bool verified = false;

  void verify() {
    if (verified) return;
    check<CheckpointError>(file.sha256() == sha256, file.path(),
                           ": does not match its digest in the manifest; the file is damaged or was changed");
    verified = true;
  }
};

std::string read_manifest(const std::string& checkpoint, const std::string& path) {
  std::error_code error;
  check<CheckpointError>(fs::is_directory(checkpoint, error), checkpoint,
                         ": there is no checkpoint folder of this name");
  const StoredFile file(path, Links::kRefuse);
  check<CheckpointError>(file.size() <= kMaxManifestBytes, path, ": is ", file.size(),
                         " bytes long, too long for a manifest");
  std::string text(static_cast<size_t>(file.size()), '\0');
  file.read(text.data(), file.size(), 0);
  return text;
}

}  // namespace

struct CheckpointReader::State {
  std::string path;
  Manifest manifest;
  std::vector<LogicalTensor> tensors;
  std::map<std::string, Shard> shards;

  void open_shards(const std::string& manifest_path) {
    for (const Manifest::File& listed : manifest.files) {
      StoredFile file((fs::path(path) / listed.name).string(), Links::kRefuse);
      check<CheckpointError>(file.size() == listed.bytes, file.path(), ": is ", file.size(),
                             " bytes long, the manifest says ", listed.bytes);
      SafetensorsHeader header = read_safetensors_header(file);
      const bool is_new =
          shards.try_emplace(listed.name, Shard{std::move(file), listed.sha256, std::move(header)}).second;
      check<CheckpointError>(is_new, manifest_path, ": lists ", listed.name, " twice");
    }
  }

  // The extents of the manifest and the tensors in the headers must be the same.
  void compare_with_headers(const std::string& manifest_path) {
    for (const auto& [name, tensor] : manifest.tensors) {
      for (const Manifest::Extent& e : tensor.extents) {
        const auto found = shards.find(e.file);
        check<CheckpointError>(found != shards.end(), manifest_path, ": tensor ", name, " lies in ", e.file,
                               ", which is not listed");
        Shard& shard = found->second;
        const SafetensorsTensor expected = stored_tensor(name, tensor.dtype, tensor.shape, e.begin, e.end);
        const auto entry = shard.header.entries.find(expected.name);
        check<CheckpointError>(entry != shard.header.entries.end() && entry->second.dtype == expected.dtype &&
                                   entry->second.shape == expected.shape &&
                                   shard.header.data_offset + entry->second.begin == e.offset,
                               shard.file.path(), ": its header has no tensor ", expected.name,
                               " of the dtype, shape and place that the manifest says");
        ++shard.used_entries;
      }
    }
    for (const auto& [name, shard] : shards)
      check<CheckpointError>(shard.used_entries == static_cast<int64_t>(shard.header.entries.size()), shard.file.path(),
                             ": holds ", shard.header.entries.size(), " tensors, the manifest knows ",
                             shard.used_entries, " of them");
  }
};

std::string weights_name(const Parameter& parameter) { return "weights/" + parameter.name; }

CheckpointReader::CheckpointReader(const std::string& path) : state_(std::make_unique<State>()) {
  State& s = *state_;
  s.path = path;
  const std::string manifest_path = (fs::path(path) / kManifestName).string();
  s.manifest = Manifest::parse(read_manifest(path, manifest_path), manifest_path);
  s.manifest.check_coverage(manifest_path);
  s.open_shards(manifest_path);
  s.compare_with_headers(manifest_path);
  for (const auto& [name, tensor] : s.manifest.tensors) s.tensors.push_back({name, tensor.dtype, tensor.shape});
}

CheckpointReader::~CheckpointReader() = default;
CheckpointReader::CheckpointReader(CheckpointReader&&) noexcept = default;

const std::string& CheckpointReader::path() const { return state_->path; }
const CheckpointInfo& CheckpointReader::info() const { return state_->manifest.info; }
const std::vector<CheckpointReader::LogicalTensor>& CheckpointReader::tensors() const { return state_->tensors; }

const CheckpointReader::LogicalTensor* CheckpointReader::find(const std::string& name) const {
  const auto by_name = [](const LogicalTensor& tensor, const std::string& name) { return tensor.name < name; };
  const auto at = std::lower_bound(state_->tensors.begin(), state_->tensors.end(), name, by_name);
  return at != state_->tensors.end() && at->name == name ? &*at : nullptr;
}

void CheckpointReader::read(CheckpointSlice& slice) const {
  const auto found = state_->manifest.tensors.find(slice.name);
  check<CheckpointError>(found != state_->manifest.tensors.end(), state_->path, ": holds no tensor ", slice.name);
  const Manifest::LogicalTensor& tensor = found->second;
  check<CheckpointError>(tensor.shape == slice.shape && tensor.dtype == slice.data.dtype(), state_->path, ": tensor ",
                         slice.name, " is ", name_of(tensor.dtype), ' ', tensor.shape.to_string(), ", expected ",
                         name_of(slice.data.dtype()), ' ', slice.shape.to_string());
  check_slice(slice);
  const int64_t element_bytes = size_of(tensor.dtype);
  char* out = static_cast<char*>(slice.data.raw());
  for (const Manifest::Extent& e : tensor.extents) {
    const int64_t begin = std::max(slice.begin, e.begin), end = std::min(slice.end, e.end);
    if (begin >= end) continue;
    Shard& shard = state_->shards.at(e.file);
    shard.verify();
    shard.file.read(out + (begin - slice.begin) * element_bytes, (end - begin) * element_bytes,
                    e.offset + (begin - e.begin) * element_bytes);
  }
}

void CheckpointReader::read_weights(const Parameter& parameter, int64_t begin, int64_t end, Tensor out) const {
  const std::string name = weights_name(parameter);
  const LogicalTensor* found = find(name);
  const DType stored = found ? found->dtype : out.dtype();
  if (stored == out.dtype()) {
    CheckpointSlice slice{name, parameter.shape, begin, end, out};
    return read(slice);
  }
  std::vector<uint64_t> memory(std::min(kConvertElements, end - begin));  // 8 bytes hold an element of every dtype
  for (int64_t first = begin; first < end; first += kConvertElements) {
    const int64_t last = std::min(first + kConvertElements, end);
    CheckpointSlice slice{name, parameter.shape, first, last, Tensor(memory.data(), stored, {last - first})};
    read(slice);
    convert(out.view({end - begin}).rows(first - begin, last - begin), slice.data);
  }
}

void CheckpointReader::verify() const {
  for (auto& [name, shard] : state_->shards) shard.verify();
}

}  // namespace braid
