#include "trainer/checkpoint/checkpoint_file.h"

#include <algorithm>

#include "trainer/checkpoint/safetensors.h"

namespace braid {
namespace {

constexpr int64_t kBlockBytes = int64_t{1} << 20;

int64_t bytes_of(const CheckpointExtent& e) { return (e.end - e.begin) * size_of(e.dtype); }

std::string header_of(const std::vector<CheckpointExtent>& extents) {
  std::vector<SafetensorsTensor> entries;
  for (const CheckpointExtent& e : extents)
    if (e.begin < e.end) entries.push_back(stored_tensor(e.name, e.dtype, e.shape, e.begin, e.end));
  return make_safetensors_header(entries, {{"format", "braid-checkpoint"}});
}

// A file's part of the manifest, without its digest.
Manifest part_of(const std::string& name, const std::vector<CheckpointExtent>& extents, const std::string& header) {
  Manifest part;
  int64_t offset = static_cast<int64_t>(header.size());
  for (const CheckpointExtent& e : extents) {
    part.add(e.name, e.dtype, e.shape, {e.begin, e.end, name, offset});
    offset += bytes_of(e);
  }
  part.files.push_back({name, offset, ""});
  return part;
}

}  // namespace

CheckpointFile::CheckpointFile(const std::string& folder, const std::string& name,
                               const std::vector<CheckpointExtent>& extents)
    : CheckpointFile(folder, name, extents, header_of(extents)) {}

CheckpointFile::CheckpointFile(const std::string& folder, const std::string& name,
                               const std::vector<CheckpointExtent>& extents, const std::string& header)
    : part_(part_of(name, extents, header)), file_(folder + "/" + name, part_.files[0].bytes) {
  write(header.data(), static_cast<int64_t>(header.size()));
}

void CheckpointFile::write(const void* data, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += kBlockBytes) {
    const char* block = static_cast<const char*>(data) + at;
    const int64_t block_bytes = std::min(kBlockBytes, bytes - at);
    digest_.update(block, static_cast<size_t>(block_bytes));
    file_.write(block, block_bytes);
  }
}

Manifest CheckpointFile::finish() {
  file_.finish();
  part_.files[0].sha256 = digest_.hex();
  return std::move(part_);
}

}  // namespace braid
