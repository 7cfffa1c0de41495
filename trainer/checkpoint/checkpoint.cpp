#include "trainer/checkpoint/checkpoint.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "data/sha256.h"
#include "trainer/checkpoint/manifest.h"
#include "trainer/checkpoint/safetensors.h"
#include "trainer/run_folder.h"

namespace braid {

namespace fs = std::filesystem;
using Json = nlohmann::json;

namespace {

constexpr const char* kTemporary = ".tmp-";
constexpr const char* kTrash = ".trash-";

std::string step_name(int64_t step) {
  char name[32];
  std::snprintf(name, sizeof name, "step-%09lld", static_cast<long long>(step));
  return name;
}

std::string shard_name(int rank) {
  char name[32];
  std::snprintf(name, sizeof name, "rank-%05d.safetensors", rank);
  return name;
}

void sync_folder(const fs::path& folder) {
  const int fd = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  check<IoError>(fd >= 0, folder.string(), ": cannot be opened: ", std::strerror(errno));
  const int status = fsync(fd), reason = errno;
  close(fd);
  check<IoError>(status == 0, folder.string(), ": cannot be written to disk: ", std::strerror(reason));
}

// Every rank's text, on every rank.
std::vector<std::string> gather_text(Context& ctx, Communicator& world, const std::string& text) {
  std::vector<int64_t> lengths(world.size());
  int64_t length = static_cast<int64_t>(text.size());
  world.all_gather(ctx, Tensor::of(lengths.data(), {world.size()}), Tensor::of(&length, {1}));
  const int64_t longest = std::max<int64_t>(1, *std::max_element(lengths.begin(), lengths.end()));
  std::vector<uint8_t> mine(longest, 0), all(longest * world.size());
  std::copy(text.begin(), text.end(), mine.begin());
  world.all_gather(ctx, Tensor::of(all.data(), {longest * world.size()}), Tensor::of(mine.data(), {longest}));
  std::vector<std::string> texts;
  for (int rank = 0; rank < world.size(); ++rank) {
    const auto begin = all.begin() + rank * longest;
    texts.emplace_back(begin, begin + lengths[rank]);
  }
  return texts;
}

// The failure of some rank, as the type it had there.
[[noreturn]] void rethrow(ExitCode code, const std::string& message) {
  if (code == ExitCode::kIo) throw IoError(message);
  if (code == ExitCode::kCheckpoint) throw CheckpointError(message);
  throw Error(code, message);
}

// Runs `work` on this rank and tells every rank how it went; if it failed anywhere, every rank throws the first
// failure.
template <class Work>
std::vector<std::string> on_all_ranks(Context& ctx, Communicator& world, Work&& work) {
  Json outcome;
  try {
    outcome["result"] = work();
  } catch (const Error& e) {
    outcome = {{"error", e.what()}, {"code", static_cast<int>(e.code())}};
  }
  std::vector<std::string> results;
  for (const std::string& text : gather_text(ctx, world, outcome.dump())) {
    const Json json = Json::parse(text);
    if (json.contains("error"))
      rethrow(static_cast<ExitCode>(json["code"].get<int>()), json["error"].get<std::string>());
    results.push_back(json["result"].get<std::string>());
  }
  return results;
}

// A file that is written once, front to back, and digested on the way. Nothing of it stays unless finish() returns.
class ShardWriter {
 public:
  ShardWriter(std::string path, int64_t bytes) : path_(std::move(path)), part_(path_ + ".part") {
    fd_ = open(part_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    check<IoError>(fd_ >= 0, part_, ": cannot be created: ", std::strerror(errno));
    const int reason = bytes > 0 ? posix_fallocate(fd_, 0, bytes) : 0;
    if (reason == ENOSPC || reason == EDQUOT || reason == EFBIG) {
      std::error_code ignored;
      const auto space = fs::space(fs::path(part_).parent_path(), ignored);
      throw_and_discard(concat("needs ", bytes, " bytes, ", space.available, " are free: ", std::strerror(reason)));
    }
  }
  ~ShardWriter() {
    if (fd_ >= 0) discard();
  }
  void write(const void* data, int64_t bytes) {
    const char* at = static_cast<const char*>(data);
    digest_.update(data, static_cast<size_t>(bytes));
    while (bytes > 0) {
      const ssize_t n = ::write(fd_, at, static_cast<size_t>(bytes));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) throw_and_discard(std::strerror(errno));
      at += n;
      bytes -= n;
    }
  }
  std::string finish() {
    if (fsync(fd_) != 0) throw_and_discard(std::strerror(errno));
    if (close(std::exchange(fd_, -1)) != 0) {
      const int reason = errno;
      std::remove(part_.c_str());
      throw IoError(path_ + ": cannot be written: " + std::strerror(reason));
    }
    check<IoError>(std::rename(part_.c_str(), path_.c_str()) == 0, path_, ": cannot be named: ", std::strerror(errno));
    return digest_.hex();
  }

 private:
  void discard() {
    close(std::exchange(fd_, -1));
    std::remove(part_.c_str());
  }
  [[noreturn]] void throw_and_discard(const std::string& reason) {
    discard();
    throw IoError(path_ + ": cannot be written: " + reason);
  }
  std::string path_, part_;
  int fd_ = -1;
  Sha256 digest_;
};

Json shape_json(const Shape& shape) {
  Json json = Json::array();
  for (int axis = 0; axis < shape.rank(); ++axis) json.push_back(shape[axis]);
  return json;
}

// Writes this rank's shard; returns its lines for the manifest.
std::string write_shard(const fs::path& folder, int rank, const std::vector<CheckpointSlice>& slices) {
  const std::string name = shard_name(rank);
  std::vector<SafetensorsTensor> tensors;
  int64_t bytes = 0;
  Json pieces = Json::array();
  for (const CheckpointSlice& slice : slices) {
    const bool whole = slice.begin == 0 && slice.end == slice.shape.numel();
    check<ShapeError>(slice.data.numel() == slice.end - slice.begin, slice.name, ": a slice of ",
                      slice.end - slice.begin, " elements comes with ", slice.data.numel());
    SafetensorsTensor tensor{slice.name, slice.data.dtype(), {}};
    if (!whole) tensor.name += concat('@', slice.begin);
    for (int axis = 0; whole && axis < slice.shape.rank(); ++axis) tensor.shape.push_back(slice.shape[axis]);
    if (!whole) tensor.shape = {slice.end - slice.begin};
    pieces.push_back({{"tensor", slice.name},
                      {"dtype", name_of(slice.data.dtype())},
                      {"shape", shape_json(slice.shape)},
                      {"begin", slice.begin},
                      {"end", slice.end},
                      {"entry", tensor.name}});
    tensors.push_back(std::move(tensor));
    bytes += slice.data.bytes();
  }
  const std::string header = make_safetensors_header(tensors, {{"format", "braid-checkpoint"}});
  bytes += static_cast<int64_t>(header.size());
  ShardWriter file((folder / name).string(), bytes);
  file.write(header.data(), static_cast<int64_t>(header.size()));
  for (const CheckpointSlice& slice : slices) {
    const Tensor& data = slice.data;
    file.write(data.raw(), data.bytes());
  }
  const std::string digest = file.finish();
  return Json({{"file", name}, {"bytes", bytes}, {"sha256", digest}, {"pieces", std::move(pieces)}}).dump();
}

Manifest make_manifest(const CheckpointInfo& info, const std::vector<std::string>& shards, const std::string& path) {
  Manifest manifest;
  manifest.info = info;
  for (const std::string& text : shards) {
    const Json shard = Json::parse(text);
    manifest.files.push_back({shard["file"], shard["bytes"], shard["sha256"]});
    for (const Json& piece : shard["pieces"]) {
      Manifest::LogicalTensor& tensor = manifest.tensors[piece["tensor"]];
      Shape shape;
      for (int64_t dim : piece["shape"]) shape.append(dim);
      check<CheckpointError>(tensor.extents.empty() || tensor.shape == shape, path, ": ranks disagree on the shape of ",
                             piece["tensor"].get<std::string>());
      tensor.shape = shape;
      for (DType dtype : {DType::kF64, DType::kF32, DType::kBF16, DType::kI64, DType::kI32, DType::kU8})
        if (piece["dtype"] == name_of(dtype)) tensor.dtype = dtype;
      tensor.extents.push_back({piece["begin"], piece["end"], shard["file"], piece["entry"]});
    }
  }
  for (auto& [name, tensor] : manifest.tensors)
    std::sort(tensor.extents.begin(), tensor.extents.end(),
              [](const auto& a, const auto& b) { return a.begin < b.begin; });
  manifest.check_coverage(path);
  return manifest;
}

// Makes `temporary` the checkpoint `final`. A checkpoint of this step that is there already (the step was saved, lost
// and trained again) is moved aside first and deleted only once the new one has its name.
void commit(const fs::path& temporary, const fs::path& final) {
  const fs::path trash = final.parent_path() / (kTrash + final.filename().string());
  fs::remove_all(trash);
  if (fs::exists(final)) fs::rename(final, trash);
  fs::rename(temporary, final);
  sync_folder(final.parent_path());
  fs::remove_all(trash);
}

}  // namespace

std::string save_checkpoint(Context& ctx, Communicator& world, const std::string& folder, const CheckpointInfo& info,
                            const std::vector<CheckpointSlice>& slices) {
  const bool first = world.rank() == 0;
  const fs::path final = fs::path(folder) / step_name(info.step);
  const fs::path temporary = fs::path(folder) / (kTemporary + step_name(info.step));
  auto io = [](auto&& body) -> std::string {
    try {
      return body();
    } catch (const fs::filesystem_error& e) {
      throw IoError(concat(e.path1().string(), ": ", e.code().message()));
    }
  };
  try {
    on_all_ranks(ctx, world, [&] {
      return io([&]() -> std::string {
        if (!first) return "";
        fs::create_directories(folder);
        fs::remove_all(temporary);
        fs::create_directory(temporary);
        sync_folder(folder);
        return "";
      });
    });
    const auto shards =
        on_all_ranks(ctx, world, [&] { return io([&] { return write_shard(temporary, world.rank(), slices); }); });
    on_all_ranks(ctx, world, [&] {
      return io([&]() -> std::string {
        if (!first) return "";
        const Manifest manifest = make_manifest(info, shards, final.string());
        write_file_atomically((temporary / kManifestName).string(), manifest.to_text());
        sync_folder(temporary);
        commit(temporary, final);
        write_file_atomically((fs::path(folder) / "LATEST").string(), final.filename().string() + "\n");
        return "";
      });
    });
  } catch (const Error&) {
    std::error_code ignored;
    if (first) fs::remove_all(temporary, ignored);
    throw;
  }
  return final.string();
}

std::vector<CheckpointEntry> list_checkpoints(const std::string& folder) {
  std::vector<CheckpointEntry> entries;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    long long step = 0;
    int used = 0;
    if (std::sscanf(name.c_str(), "step-%9lld%n", &step, &used) != 1 || name != step_name(step)) continue;
    if (fs::exists(entry.path() / kManifestName)) entries.push_back({step, entry.path().string()});
  }
  std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.step < b.step; });
  return entries;
}

void prune_checkpoints(const std::string& folder, int64_t keep) {
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder, ignored)) {
    const std::string name = entry.path().filename().string();
    if (name.rfind(kTemporary, 0) == 0 || name.rfind(kTrash, 0) == 0) fs::remove_all(entry.path(), ignored);
  }
  if (keep <= 0) return;
  auto entries = list_checkpoints(folder);
  for (size_t i = 0; i + keep < entries.size(); ++i) {
    // Out of the way in one step, so that a kill in the middle leaves no half of a checkpoint under its name.
    const fs::path path = entries[i].path, trash = path.parent_path() / (kTrash + path.filename().string());
    fs::rename(path, trash, ignored);
    fs::remove_all(trash, ignored);
  }
}

}  // namespace braid
