#include "trainer/checkpoint/checkpoint.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <filesystem>

#include "kernels/core/durable_file.h"
#include "parallel/rank_text.h"
#include "trainer/checkpoint/checkpoint_file.h"
#include "trainer/checkpoint/manifest.h"

namespace braid {

namespace fs = std::filesystem;

namespace {

constexpr std::string_view kStepPrefix = "step-", kTemporary = ".tmp-", kTrash = ".trash-";
constexpr const char* kLatestName = "LATEST";

std::string numbered(const char* format, int64_t number) {
  char name[40];
  std::snprintf(name, sizeof name, format, static_cast<long long>(number));
  return name;
}
std::string step_name(int64_t step) { return numbered("step-%09lld", step); }
std::string shard_name(int rank) { return numbered("rank-%05lld.safetensors", rank); }

fs::path beside(const fs::path& path, std::string_view prefix) {
  return path.parent_path() / (std::string(prefix) + path.filename().string());
}

// The C++ library's own file system errors, in our words.
template <class Body>
auto with_io_errors(Body&& body) {
  try {
    return body();
  } catch (const fs::filesystem_error& e) {
    throw IoError(concat(e.path1().string(), ": ", e.code().message()));
  }
}

// Writes a rank's slices into a file of `folder`, straight from where they lie.   Returns the rank's part of the
// manifest.
Manifest write_shard(const fs::path& folder, int rank, const std::vector<CheckpointSlice>& slices) {
  std::vector<CheckpointExtent> extents;
  for (const CheckpointSlice& s : slices) {
    check_slice(s);
    extents.push_back({s.name, s.data.dtype(), s.shape, s.begin, s.end});
  }
  CheckpointFile file(folder.string(), shard_name(rank), extents);
  for (const CheckpointSlice& s : slices) file.write(s.data.raw(), s.data.bytes());
  return file.finish();
}

Manifest joined(const CheckpointInfo& info, const std::vector<std::string>& parts, const std::string& path) {
  Manifest whole;
  whole.info = info;
  for (const std::string& text : parts) whole.append(Manifest::parse(text, path));
  whole.check_coverage(path);
  return whole;
}

// Gives the complete checkpoint `temporary` its name. One of this step that is there already (trained again after a
// resume from an older one) is moved aside first; if anything fails, it gets its name back.
void commit(const fs::path& temporary, const fs::path& path) {
  const fs::path trash = beside(path, kTrash);
  fs::remove_all(trash);
  const bool replaces = fs::exists(fs::symlink_status(path));
  if (replaces) fs::rename(path, trash);
  std::error_code ignored;
  try {
    fs::rename(temporary, path);
    sync_folder(path.parent_path().string());
  } catch (const std::exception&) {
    fs::rename(path, temporary, ignored);
    if (replaces) fs::rename(trash, path, ignored);
    throw;
  }
  // The checkpoint is there. What follows may fail without a word: pruning removes the trash, and nothing relies on
  // LATEST.
  fs::remove_all(trash, ignored);
  try {
    write_file_atomically((path.parent_path() / kLatestName).string(), path.filename().string() + "\n");
  } catch (const IoError&) {
  }
}

// The name of the checkpoint that was committed last, as far as LATEST can be trusted.
std::string latest_name(const fs::path& folder) {
  try {
    const StoredFile file((folder / kLatestName).string(), Links::kRefuse);
    std::string name(std::min<int64_t>(file.size(), 64), '\0');
    file.read(name.data(), static_cast<int64_t>(name.size()), 0);
    return name.substr(0, name.find('\n'));
  } catch (const CheckpointError&) {
    return "";
  }
}

std::vector<fs::path> entries_of(const std::string& folder) {
  std::vector<fs::path> paths;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error))
    paths.push_back(it->path());
  return paths;
}

void remove_left_overs(const std::string& folder) {
  std::error_code ignored;
  for (const fs::path& path : entries_of(folder)) {
    const std::string name = path.filename().string();
    if (name.starts_with(kTemporary) || name.starts_with(kTrash)) fs::remove_all(path, ignored);
  }
}

}  // namespace

std::string save_checkpoint(Context& ctx, Communicator& world, const std::string& folder, const CheckpointInfo& info,
                            const std::vector<CheckpointSlice>& slices) {
  const bool is_first = world.rank() == 0;
  const fs::path path = fs::path(folder) / step_name(info.step);
  const fs::path temporary = beside(path, kTemporary);
  // One stage of the protocol, in which rank 0 alone acts.
  const auto on_first_rank = [&](const std::function<void()>& body) {
    all_or_none(ctx, world, [&] {
      if (is_first) with_io_errors(body);
      return std::string();
    });
  };
  try {
    on_first_rank([&] {
      create_folder(folder);
      fs::remove_all(temporary);
      create_folder(temporary.string());
    });
    const auto parts = all_or_none(ctx, world, [&] { return write_shard(temporary, world.rank(), slices).to_text(); });
    on_first_rank([&] {
      const Manifest manifest = joined(info, parts, path.string());
      write_file_atomically((temporary / kManifestName).string(), manifest.to_text());
      commit(temporary, path);
    });
  } catch (const Error&) {
    std::error_code ignored;
    if (is_first) fs::remove_all(temporary, ignored);
    throw;
  }
  return path.string();
}

std::vector<CheckpointEntry> list_checkpoints(const std::string& folder) {
  std::vector<CheckpointEntry> entries;
  for (const fs::path& path : entries_of(folder)) {
    const std::string name = path.filename().string();
    if (!name.starts_with(kStepPrefix)) continue;
    int64_t step = 0;
    std::from_chars(name.data() + kStepPrefix.size(), name.data() + name.size(), step);
    std::error_code ignored;
    if (step >= 0 && name == step_name(step) && fs::exists(path / kManifestName, ignored))
      entries.push_back({step, path.string()});
  }
  std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.step < b.step; });
  return entries;
}

namespace {

std::string checkpoint_folder_in(const std::string& path) {
  std::error_code ignored;
  if (fs::exists(fs::path(path) / kManifestName, ignored)) return path;
  const fs::path in_run = fs::path(path) / "checkpoints";
  const auto checkpoints = list_checkpoints(fs::exists(in_run, ignored) ? in_run.string() : path);
  check<CheckpointError>(!checkpoints.empty(), path, ": neither a checkpoint nor a run folder with one");
  return checkpoints.back().path;
}

}  // namespace

CheckpointReader open_checkpoint(const std::string& path) { return CheckpointReader(checkpoint_folder_in(path)); }

CheckpointReader open_checkpoint(Context& ctx, Communicator& world, const std::string& path) {
  std::string folder;
  all_or_none(ctx, world, [&] {
    if (world.rank() == 0) folder = checkpoint_folder_in(path);
    return std::string();
  });
  return CheckpointReader(ctx, world, broadcast_text(ctx, world, folder));
}

void prune_checkpoints(const std::string& folder, int64_t keep) {
  remove_left_overs(folder);  // first, as their names are needed below
  if (keep <= 0) return;
  const auto entries = list_checkpoints(folder);
  // After a resume from an older checkpoint the newest by step may be one that could not be loaded.
  const std::string latest = latest_name(folder);
  for (size_t i = 0; i + static_cast<size_t>(keep) < entries.size(); ++i) {
    const fs::path path = entries[i].path;
    if (path.filename() == latest) continue;
    // Out of the way in one step, so that a kill in the middle leaves no half of a checkpoint under its name. What
    // cannot be removed is left for the next time.
    std::error_code ignored;
    fs::rename(path, beside(path, kTrash), ignored);
  }
  remove_left_overs(folder);
}

}  // namespace braid
