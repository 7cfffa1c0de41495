#include "trainer/checkpoint/checkpoint_file.h"

#include <algorithm>
#include <cstdio>
#include <future>

#include "kernels/core/crc32c.h"
#include "kernels/core/stored_file.h"
#include "trainer/checkpoint/safetensors.h"

namespace braid {
namespace {

constexpr int64_t kPieceBytes = int64_t{1} << 20;

int64_t bytes_of(const CheckpointExtent& e) { return (e.end - e.begin) * size_of(e.dtype); }

std::string header_of(const std::vector<CheckpointExtent>& extents) {
  std::vector<SafetensorsTensor> entries;
  for (const CheckpointExtent& e : extents)
    if (e.begin < e.end) entries.push_back(stored_tensor(e.name, e.dtype, e.shape, e.begin, e.end));
  return make_safetensors_header(entries, {{"format", "braid-checkpoint"}});
}

int64_t bytes_of(const std::vector<CheckpointExtent>& extents) {
  int64_t bytes = 0;
  for (const CheckpointExtent& e : extents) bytes += bytes_of(e);
  return bytes;
}

}  // namespace

CheckpointFile::CheckpointFile(const std::string& folder, const std::string& name,
                               const std::vector<CheckpointExtent>& extents)
    : CheckpointFile(folder, name, extents, header_of(extents)) {}

CheckpointFile::CheckpointFile(const std::string& folder, const std::string& name,
                               const std::vector<CheckpointExtent>& extents, const std::string& header)
    : extents_(extents),
      listed_{name, static_cast<int64_t>(header.size()) + bytes_of(extents), "", crc32c(header.data(), header.size())},
      header_bytes_(static_cast<int64_t>(header.size())),
      file_(folder + "/" + name, listed_.bytes),
      crc32c_(extents.size()) {
  sha256_.update(header.data(), header.size());
  file_.write(header.data(), header_bytes_);
}

// SHA-256 takes longer than all else, and bytes of a file can only be digested one after the other: much of them is by
// a second thread meanwhile, or at the end if there is none to be had.
void CheckpointFile::write(const void* data, int64_t bytes) {
  const auto digest = [&] { sha256_.update(data, static_cast<size_t>(bytes)); };
  if (bytes < kPieceBytes) {
    digest();
    return write_blocks(data, bytes);
  }
  std::future<void> digested = std::async(std::launch::async | std::launch::deferred, digest);
  write_blocks(data, bytes);
  digested.get();
}

void CheckpointFile::write_blocks(const void* data, int64_t bytes) {
  for (int64_t at = 0; at < bytes;) {
    while (extent_ < extents_.size() && done_ == bytes_of(extents_[extent_])) ++extent_, done_ = 0;
    check<ShapeError>(extent_ < extents_.size(), listed_.name, ": more bytes are written than it was made for");
    const int64_t in_block = done_ % kDigestBlockBytes;
    const int64_t piece =
        std::min({kPieceBytes, bytes - at, kDigestBlockBytes - in_block, bytes_of(extents_[extent_]) - done_});
    const char* begin = static_cast<const char*>(data) + at;
    std::vector<uint32_t>& crcs = crc32c_[extent_];
    if (in_block == 0) crcs.push_back(0);
    crcs.back() = crc32c(begin, static_cast<size_t>(piece), crcs.back());
    file_.write(begin, piece);
    at += piece;
    done_ += piece;
  }
}

Manifest CheckpointFile::finish() {
  file_.finish();
  listed_.sha256 = sha256_.hex();
  Manifest part;
  part.files.push_back(listed_);
  int64_t offset = header_bytes_;
  for (size_t i = 0; i < extents_.size(); ++i) {
    const CheckpointExtent& e = extents_[i];
    part.add(e.name, e.dtype, e.shape, {e.begin, e.end, listed_.name, offset, std::move(crc32c_[i])});
    offset += bytes_of(e);
  }
  return part;
}

std::string data_file_name(const char* kind, int64_t number) {
  char name[60];
  std::snprintf(name, sizeof name, "%s-%05lld.safetensors", kind, static_cast<long long>(number));
  return name;
}

void check_data_file(const std::string& folder, const Manifest& part) {
  const Manifest::File& listed = part.files.at(0);
  const StoredFile file(folder + "/" + listed.name, Links::kRefuse);
  file.forget_cached();
  check<CheckpointError>(file.size() == listed.bytes, file.path(), ": is ", file.size(), " bytes long, ", listed.bytes,
                         " were written");
  std::vector<char> block(static_cast<size_t>(std::min(listed.bytes, kDigestBlockBytes)));
  const auto digest = [&](int64_t begin, int64_t end) {
    uint32_t crc = 0;
    for (int64_t at = begin; at < end; at += std::ssize(block)) {
      const int64_t bytes = std::min<int64_t>(std::ssize(block), end - at);
      file.read(block.data(), bytes, at);
      crc = crc32c(block.data(), static_cast<size_t>(bytes), crc);
    }
    return crc;
  };
  int64_t header_bytes = listed.bytes;
  for (const auto& [name, tensor] : part.tensors) {
    for (const Manifest::Extent& e : tensor.extents) {
      header_bytes = std::min(header_bytes, e.offset);
      const int64_t end = e.offset + (e.end - e.begin) * size_of(tensor.dtype);
      for (size_t i = 0; i < e.crc32c.size(); ++i) {
        const int64_t begin = e.offset + static_cast<int64_t>(i) * kDigestBlockBytes;
        check<CheckpointError>(digest(begin, std::min(begin + kDigestBlockBytes, end)) == e.crc32c[i], file.path(),
                               ": tensor ", name, ": what is read back is not what was written");
      }
    }
  }
  check<CheckpointError>(digest(0, header_bytes) == listed.header_crc32c, file.path(),
                         ": the header that is read back is not what was written");
}

}  // namespace braid
