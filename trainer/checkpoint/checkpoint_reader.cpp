#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <type_traits>
#include <utility>

#include "kernels/core/crc32c.h"
#include "kernels/core/float_types.h"
#include "kernels/core/sha256.h"
#include "kernels/core/stored_file.h"
#include "parallel/rank_text.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/checkpoint/manifest.h"
#include "trainer/checkpoint/safetensors.h"

namespace braid {

namespace fs = std::filesystem;

namespace {

constexpr int64_t kMaxManifestBytes = int64_t{64} << 20;
constexpr const char* kWeightsPrefix = "weights/";
constexpr int64_t kConvertElements = int64_t{1} << 17;  // converted at a time

using NamedTensor = std::pair<const std::string, Manifest::LogicalTensor>;

// Extent `extent` of the tensor `tensor`, both counted in the manifest's order.
struct ExtentId {
  int64_t tensor = 0, extent = 0;
  auto operator<=>(const ExtentId&) const = default;
};
struct BlockId {
  ExtentId in;
  int64_t index = 0;
  auto operator<=>(const BlockId&) const = default;
};
// Bytes [begin, end) of a block, as a rank has read and digested them. Ranks send it to each other as it is.
struct Part {
  BlockId block;
  int64_t begin = 0, end = 0;
  int64_t crc32c = 0;
  auto operator<=>(const Part&) const = default;
};
static_assert(std::is_trivially_copyable_v<Part>);

std::string to_bytes(const std::vector<Part>& parts) {
  return {reinterpret_cast<const char*>(parts.data()), parts.size() * sizeof(Part)};
}
void append_parts(const std::string& bytes, std::vector<Part>& parts) {
  const size_t before = parts.size();
  parts.resize(before + bytes.size() / sizeof(Part));
  if (!bytes.empty()) std::memcpy(parts.data() + before, bytes.data(), bytes.size());
}

}  // namespace

struct CheckpointReader::State {
  std::string path;
  Manifest manifest;
  std::vector<LogicalTensor> tensors;
  std::vector<NamedTensor*> stored;  // beside `tensors`
  struct Listed {
    Manifest::File* file = nullptr;
    std::vector<ExtentId> extents;  // by offset
  };
  std::map<std::string, Listed> files;

  bool is_shared = false;
  std::vector<Part> parts;  // of blocks that this rank has not read whole
  int64_t bytes_read = 0;
  std::optional<StoredFile> open;  // the file that was read last
  std::vector<std::byte> block;    // the block that was read last, if not shared
  std::optional<BlockId> block_id;

  std::string manifest_path() const { return (fs::path(path) / kManifestName).string(); }
  std::string path_of(const std::string& file) const { return (fs::path(path) / file).string(); }
  Manifest::Extent& extent(ExtentId id) { return stored[id.tensor]->second.extents[id.extent]; }
  int64_t element_bytes(ExtentId id) const { return size_of(tensors[id.tensor].dtype); }
  int64_t bytes_of(ExtentId id) {
    const Manifest::Extent& e = extent(id);
    return (e.end - e.begin) * element_bytes(id);
  }
  int64_t bytes_of(BlockId b) { return std::min(kDigestBlockBytes, bytes_of(b.in) - b.index * kDigestBlockBytes); }
  int64_t header_bytes(const Listed& listed) {
    return listed.extents.empty() ? listed.file->bytes : extent(listed.extents[0]).offset;
  }

  std::string read_manifest() {
    std::error_code error;
    check<CheckpointError>(fs::is_directory(path, error), path, ": there is no checkpoint folder of this name");
    const StoredFile file(manifest_path(), Links::kRefuse);
    check<CheckpointError>(file.size() <= kMaxManifestBytes, file.path(), ": is ", file.size(),
                           " bytes long, too long for a manifest");
    std::string text(static_cast<size_t>(file.size()), '\0');
    file.read(text.data(), file.size(), 0);
    bytes_read += file.size();
    return text;
  }

  void take_manifest(const std::string& text) {
    manifest = Manifest::parse(text, manifest_path());
    manifest.check_coverage(manifest_path());
    for (Manifest::File& file : manifest.files)
      check<CheckpointError>(files.try_emplace(file.name, Listed{&file, {}}).second, manifest_path(), ": lists ",
                             file.name, " twice");
    for (NamedTensor& named : manifest.tensors) {
      auto& [name, tensor] = named;
      const int64_t t = static_cast<int64_t>(tensors.size());
      tensors.push_back({name, tensor.dtype, tensor.shape});
      stored.push_back(&named);
      for (size_t i = 0; i < tensor.extents.size(); ++i) {
        const auto found = files.find(tensor.extents[i].file);
        check<CheckpointError>(found != files.end(), manifest_path(), ": tensor ", name, " lies in ",
                               tensor.extents[i].file, ", which is not listed");
        found->second.extents.push_back({t, static_cast<int64_t>(i)});
      }
    }
    for (auto& [name, listed] : files)
      std::sort(listed.extents.begin(), listed.extents.end(),
                [&](ExtentId a, ExtentId b) { return extent(a).offset < extent(b).offset; });
  }

  const StoredFile& file(const std::string& name) {
    if (open && open->path() == path_of(name)) return *open;
    open.reset();
    open.emplace(path_of(name), Links::kRefuse);
    const int64_t bytes = files.at(name).file->bytes;
    check<CheckpointError>(open->size() == bytes, open->path(), ": is ", open->size(),
                           " bytes long, the manifest says ", bytes);
    return *open;
  }
  void read_bytes(const std::string& name, void* out, int64_t bytes, int64_t position) {
    file(name).read(out, bytes, position);
    bytes_read += bytes;
  }

  // The header of a file is as it was written, and says what the manifest says. The digest of one is enough where
  // every byte counts.
  void check_header(const Listed& listed) {
    check_header_digest(listed);
    if (is_shared && listed.file->header_crc32c) return;
    compare_header(listed);
  }
  std::string read_header(const Listed& listed) {
    const int64_t bytes = header_bytes(listed);
    check<CheckpointError>(bytes <= file(listed.file->name).size(), path_of(listed.file->name),
                           ": its first tensor is to lie behind its end");
    std::string header(static_cast<size_t>(bytes), '\0');
    read_bytes(listed.file->name, header.data(), bytes, 0);
    return header;
  }
  void check_header_digest(const Listed& listed) {
    if (!listed.file->header_crc32c) return;
    const std::string header = read_header(listed);
    check<CheckpointError>(
        crc32c(header.data(), header.size()) == *listed.file->header_crc32c, path_of(listed.file->name),
        ": its header does not match its digest in the manifest; the file is damaged or was changed");
  }
  void compare_header(const Listed& listed) {
    const SafetensorsHeader header = read_safetensors_header(file(listed.file->name));
    bytes_read += header.data_offset;
    for (const ExtentId id : listed.extents) {
      const LogicalTensor& tensor = tensors[id.tensor];
      const Manifest::Extent& e = extent(id);
      const SafetensorsTensor expected = stored_tensor(tensor.name, tensor.dtype, tensor.shape, e.begin, e.end);
      const auto entry = header.entries.find(expected.name);
      check<CheckpointError>(entry != header.entries.end() && entry->second.dtype == expected.dtype &&
                                 entry->second.shape == expected.shape &&
                                 header.data_offset + entry->second.begin == e.offset,
                             open->path(), ": its header has no tensor ", expected.name,
                             " of the dtype, shape and place that the manifest says");
    }
    check<CheckpointError>(listed.extents.size() == header.entries.size(), open->path(), ": holds ",
                           header.entries.size(), " tensors, the manifest knows ", listed.extents.size(), " of them");
  }

  // What is wrong with bytes of an extent.
  void check_block(BlockId b, uint32_t found) {
    const Manifest::Extent& e = extent(b.in);
    const int64_t begin = e.begin + b.index * kDigestBlockBytes / element_bytes(b.in);
    check<CheckpointError>(found == e.crc32c[b.index], path_of(e.file), ": tensor ", tensors[b.in.tensor].name,
                           ": elements ", begin, " to ", begin + bytes_of(b) / element_bytes(b.in),
                           ": do not match their digest in the manifest; the file is damaged or was changed");
  }
  // Reads a part of a block.   Returns its digest, that follows `before`.
  uint32_t read_part(BlockId b, int64_t begin, int64_t end, void* out, uint32_t before = 0) {
    const Manifest::Extent& e = extent(b.in);
    read_bytes(e.file, out, end - begin, e.offset + b.index * kDigestBlockBytes + begin);
    return crc32c(out, static_cast<size_t>(end - begin), before);
  }
  const std::byte* whole_block(BlockId b) {
    if (block_id == b) return block.data();
    block_id.reset();
    block.resize(static_cast<size_t>(bytes_of(b)));
    check_block(b, read_part(b, 0, bytes_of(b), block.data()));
    block_id = b;
    return block.data();
  }

  void read_shared_part(BlockId b, int64_t begin, int64_t end, void* out) {
    const bool goes_on = !parts.empty() && parts.back().block == b && parts.back().end == begin;
    if (!goes_on) parts.push_back({b, begin, begin, 0});
    Part& part = parts.back();
    part.crc32c = read_part(b, begin, end, out, static_cast<uint32_t>(part.crc32c));
    part.end = end;
    if (part.begin > 0 || end < bytes_of(b)) return;
    const auto crc = static_cast<uint32_t>(part.crc32c);
    parts.pop_back();
    check_block(b, crc);
  }

  // Bytes [begin, end) of an extent.
  void read(ExtentId id, int64_t begin, int64_t end, char* out) {
    if (extent(id).crc32c.empty()) make_digests(files.at(extent(id).file));
    for (int64_t at = begin; at < end;) {
      const BlockId b{id, at / kDigestBlockBytes};
      const int64_t first = at - b.index * kDigestBlockBytes;
      const int64_t last = std::min(first + end - at, bytes_of(b));
      if (first == 0 && last == bytes_of(b)) check_block(b, read_part(b, 0, last, out));
      else if (is_shared) read_shared_part(b, first, last, out);
      else std::memcpy(out, whole_block(b) + first, static_cast<size_t>(last - first));
      out += last - first;
      at += last - first;
    }
  }

  // Blocks of a file in their order, and what lies before them: body(block, its bytes), with id null for the header.
  // Returns the SHA-256 of it all.
  std::string read_through(const Listed& listed,
                           const std::function<void(const BlockId*, std::span<const std::byte>)>& body) {
    Sha256 digest;
    const std::string header = read_header(listed);
    digest.update(header.data(), header.size());
    body(nullptr, std::as_bytes(std::span(header)));
    block_id.reset();
    for (const ExtentId id : listed.extents) {
      for (BlockId b{id, 0}; b.index * kDigestBlockBytes < bytes_of(id); ++b.index) {
        block.resize(static_cast<size_t>(bytes_of(b)));
        const Manifest::Extent& e = extent(id);
        read_bytes(e.file, block.data(), bytes_of(b), e.offset + b.index * kDigestBlockBytes);
        digest.update(block.data(), block.size());
        body(&b, block);
      }
    }
    return digest.hex();
  }
  void check_sha256(const Listed& listed, const std::string& found) {
    check<CheckpointError>(found == listed.file->sha256, path_of(listed.file->name),
                           ": does not match its digest in the manifest; the file is damaged or was changed");
  }

  // For a file that was written before there were digests of blocks.
  void make_digests(const Listed& listed) {
    std::vector<std::pair<BlockId, uint32_t>> crcs;
    check_sha256(listed, read_through(listed, [&](const BlockId* b, std::span<const std::byte> bytes) {
                   if (b) crcs.push_back({*b, crc32c(bytes.data(), bytes.size())});
                 }));
    for (const ExtentId id : listed.extents) extent(id).crc32c.clear();
    for (const auto& [b, crc] : crcs) extent(b.in).crc32c.push_back(crc);
  }

  void visit(const Visit& body) {
    for (const auto& [name, listed] : files) {
      check_header(listed);
      if (!listed.extents.empty() && extent(listed.extents[0]).crc32c.empty()) make_digests(listed);
      check_sha256(listed, read_through(listed, [&](const BlockId* b, std::span<const std::byte> bytes) {
                     if (!b) return;
                     check_block(*b, crc32c(bytes.data(), bytes.size()));
                     const LogicalTensor& tensor = tensors[b->in.tensor];
                     const int64_t begin = extent(b->in).begin + b->index * kDigestBlockBytes / size_of(tensor.dtype);
                     if (!body) return;
                     body(tensor, begin,
                          Tensor(block.data(), tensor.dtype, {std::ssize(bytes) / size_of(tensor.dtype)}));
                   }));
    }
  }

  // A block of which the ranks have read `all` these parts, sorted: whole if they are put together? If they are not, or
  // overlap, who has one reads the block again and compares.
  void settle_block(std::span<const Part> all, std::span<const Part> own) {
    const BlockId b = all[0].block;
    int64_t position = 0;
    uint32_t crc = 0;
    const Part* last = nullptr;
    for (const Part& part : all) {
      if (last && *last == part) continue;  // read by two ranks, with the same result
      if (part.begin != position) break;
      crc = crc32c_of_both(crc, static_cast<uint32_t>(part.crc32c), static_cast<uint64_t>(part.end - part.begin));
      position = part.end;
      last = &part;
    }
    const bool is_tiled = last == &all.back() || (last && *last == all.back());
    if (is_tiled && position == bytes_of(b)) return check_block(b, crc);
    for (const Part& part : own) {
      if (part.block != b) continue;
      const std::byte* whole = whole_block(b);
      if (crc32c(whole + part.begin, static_cast<size_t>(part.end - part.begin)) != part.crc32c)
        check_block(b, ~extent(b.in).crc32c[b.index]);
    }
  }
};

std::string weights_name(const Parameter& parameter) { return kWeightsPrefix + parameter.name; }

CheckpointReader::CheckpointReader(const std::string& path) : state_(std::make_unique<State>()) {
  State& s = *state_;
  s.path = path;
  s.take_manifest(s.read_manifest());
  for (const auto& [name, listed] : s.files) s.check_header(listed);
}

CheckpointReader::CheckpointReader(Context& ctx, Communicator& world, const std::string& path)
    : state_(std::make_unique<State>()) {
  State& s = *state_;
  s.path = path;
  s.is_shared = true;
  std::string text;
  all_or_none(ctx, world, [&] {
    if (world.rank() == 0) text = s.read_manifest();
    return std::string();
  });
  text = broadcast_text(ctx, world, text);
  all_or_none(ctx, world, [&] {
    s.take_manifest(text);
    int64_t number = 0;
    for (const auto& [name, listed] : s.files)
      if (number++ % world.size() == world.rank()) s.check_header(listed);
    return std::string();
  });
}

CheckpointReader::~CheckpointReader() = default;
CheckpointReader::CheckpointReader(CheckpointReader&&) noexcept = default;

const std::string& CheckpointReader::path() const { return state_->path; }
const CheckpointInfo& CheckpointReader::info() const { return state_->manifest.info; }
const std::vector<CheckpointReader::LogicalTensor>& CheckpointReader::tensors() const { return state_->tensors; }
int64_t CheckpointReader::bytes_read() const { return state_->bytes_read; }

const CheckpointReader::LogicalTensor* CheckpointReader::find(const std::string& name) const {
  const auto by_name = [](const LogicalTensor& tensor, const std::string& name) { return tensor.name < name; };
  const auto at = std::lower_bound(state_->tensors.begin(), state_->tensors.end(), name, by_name);
  return at != state_->tensors.end() && at->name == name ? &*at : nullptr;
}

bool CheckpointReader::holds_weights_alone() const {
  return std::all_of(state_->tensors.begin(), state_->tensors.end(),
                     [](const LogicalTensor& tensor) { return tensor.name.starts_with(kWeightsPrefix); });
}

void CheckpointReader::read(CheckpointSlice& slice) const {
  const LogicalTensor* tensor = find(slice.name);
  check<CheckpointError>(tensor != nullptr, state_->path, ": holds no tensor ", slice.name);
  check<CheckpointError>(tensor->shape == slice.shape && tensor->dtype == slice.data.dtype(), state_->path, ": tensor ",
                         slice.name, " is ", name_of(tensor->dtype), ' ', tensor->shape.to_string(), ", expected ",
                         name_of(slice.data.dtype()), ' ', slice.shape.to_string());
  check_slice(slice);
  const int64_t element_bytes = size_of(tensor->dtype);
  char* out = static_cast<char*>(slice.data.raw());
  const int64_t t = tensor - state_->tensors.data();
  const std::vector<Manifest::Extent>& extents = state_->stored[t]->second.extents;
  const auto ends_before = [](const Manifest::Extent& e, int64_t begin) { return e.end <= begin; };
  const auto first = std::lower_bound(extents.begin(), extents.end(), slice.begin, ends_before);
  for (size_t i = first - extents.begin(); i < extents.size() && extents[i].begin < slice.end; ++i) {
    const Manifest::Extent& e = extents[i];
    const int64_t begin = std::max(slice.begin, e.begin), end = std::min(slice.end, e.end);
    if (begin >= end) continue;
    state_->read({t, static_cast<int64_t>(i)}, (begin - e.begin) * element_bytes, (end - e.begin) * element_bytes,
                 out + (begin - slice.begin) * element_bytes);
  }
}

std::optional<Shape> CheckpointReader::stored_shape(const Parameter& parameter) const {
  const LogicalTensor* found = find(weights_name(parameter));
  return found ? std::optional(found->shape) : std::nullopt;
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

void CheckpointReader::settle(Context& ctx, Communicator& world) const {
  State& s = *state_;
  std::vector<Part> own = std::exchange(s.parts, {}), all;
  for (const std::string& bytes : gather_text(ctx, world, to_bytes(own))) append_parts(bytes, all);
  std::sort(all.begin(), all.end());
  all_or_none(ctx, world, [&] {
    for (size_t first = 0, last = 0; first < all.size(); first = last) {
      while (last < all.size() && all[last].block == all[first].block) ++last;
      s.settle_block(std::span(all).subspan(first, last - first), own);
    }
    return std::string();
  });
}

void CheckpointReader::visit(const Visit& body) const { state_->visit(body); }
void CheckpointReader::verify() const { state_->visit({}); }

}  // namespace braid
