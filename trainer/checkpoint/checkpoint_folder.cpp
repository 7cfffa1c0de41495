#include "trainer/checkpoint/checkpoint_folder.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <filesystem>
#include <string_view>

#include "kernels/core/durable_file.h"
#include "kernels/core/error.h"
#include "kernels/core/stored_file.h"

namespace braid {

namespace fs = std::filesystem;

namespace {

constexpr std::string_view kStepPrefix = "step-", kTemporary = ".tmp-", kTrash = ".trash-", kCorrupt = ".corrupt-",
                           kAbandoned = ".abandoned-";
constexpr const char* kLatestName = "LATEST";

std::string beside(const fs::path& path, std::string_view prefix) {
  return (path.parent_path() / (std::string(prefix) + path.filename().string())).string();
}

// None where there is no folder.   Errors: IoError: one that cannot be read is not an empty one.
std::vector<fs::path> entries_of(const std::string& folder) {
  std::vector<fs::path> paths;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error))
    paths.push_back(it->path());
  check<IoError>(!error || error == std::errc::no_such_file_or_directory || error == std::errc::not_a_directory, folder,
                 ": cannot be listed: ", error.message());
  return paths;
}

// A name beside `path` that begins with `prefix` and is free.
std::string free_name(const fs::path& path, std::string_view prefix) {
  const std::string name = beside(path, prefix);
  std::error_code ignored;
  for (int number = 1;; ++number) {
    const std::string numbered = number == 1 ? name : concat(name, '.', number);
    if (!fs::exists(fs::symlink_status(numbered, ignored))) return numbered;
  }
}

}  // namespace

std::string step_name(int64_t step) {
  char name[40];
  std::snprintf(name, sizeof name, "step-%09lld", static_cast<long long>(step));
  return name;
}
std::string temporary_of(const std::string& path) { return beside(path, kTemporary); }
std::string trash_of(const std::string& path) { return beside(path, kTrash); }
std::string free_corrupt_name(const std::string& path) { return free_name(path, kCorrupt); }

void write_latest(const std::string& folder, const std::string& name) {
  write_file_atomically((fs::path(folder) / kLatestName).string(), name + "\n");
}

std::string latest_name(const std::string& folder) {
  try {
    const StoredFile file((fs::path(folder) / kLatestName).string(), Links::kRefuse);
    std::string name(std::min<int64_t>(file.size(), 64), '\0');
    file.read(name.data(), static_cast<int64_t>(name.size()), 0);
    return name.substr(0, name.find('\n'));
  } catch (const CheckpointError&) {
    return "";
  }
}

std::vector<CheckpointEntry> list_checkpoints(const std::string& folder) {
  std::vector<CheckpointEntry> entries;
  for (const fs::path& path : entries_of(folder)) {
    const std::string name = path.filename().string();
    if (!name.starts_with(kStepPrefix)) continue;
    int64_t step = 0;
    std::from_chars(name.data() + kStepPrefix.size(), name.data() + name.size(), step);
    std::error_code ignored;
    if (step >= 0 && name == step_name(step) && fs::is_directory(path, ignored))
      entries.push_back({step, path.string()});
  }
  std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.step < b.step; });
  return entries;
}

std::string run_folder_of(const std::string& checkpoint) {
  const fs::path folder = fs::weakly_canonical(checkpoint).parent_path();
  return folder.filename() == "checkpoints" ? folder.parent_path().string() : "";
}

std::vector<CheckpointEntry> branch_checkpoints(const std::string& folder) {
  std::vector<CheckpointEntry> entries = list_checkpoints(folder);
  const std::string latest = latest_name(folder);
  const auto named = std::find_if(entries.begin(), entries.end(), [&](const CheckpointEntry& entry) {
    return fs::path(entry.path).filename() == latest;
  });
  if (named != entries.end()) entries.erase(named + 1, entries.end());
  std::reverse(entries.begin(), entries.end());
  return entries;
}

// The newest first and LATEST last: a kill in between leaves the older ones of the branch that is left, and their
// newest is what is gone on from, if it is not said again where to go on.
std::vector<std::string> set_others_aside(const std::string& folder, const std::string& path,
                                          const std::vector<std::string>& damaged) {
  std::vector<CheckpointEntry> entries = list_checkpoints(folder);
  const auto chosen = std::find_if(entries.begin(), entries.end(), [&](const CheckpointEntry& entry) {
    std::error_code ignored;
    return fs::equivalent(entry.path, path, ignored);
  });
  const bool is_here = chosen != entries.end();  // else it is another run's, and none of these leads to it
  const std::string name = is_here ? fs::path(chosen->path).filename().string() : "";
  entries.erase(entries.begin(), is_here ? chosen + 1 : entries.begin());
  std::reverse(entries.begin(), entries.end());
  std::vector<std::string> names;
  for (const CheckpointEntry& entry : entries) {
    const bool is_damaged = std::find(damaged.begin(), damaged.end(), entry.path) != damaged.end();
    names.push_back(free_name(entry.path, is_damaged ? kCorrupt : kAbandoned));
    const bool renamed = std::rename(entry.path.c_str(), names.back().c_str()) == 0;
    check<IoError>(renamed, entry.path, ": cannot be given another name: ", reason(errno));
  }
  if (!names.empty()) sync_folder(folder);
  if (is_here && latest_name(folder) != name) write_latest(folder, name);
  return names;
}

void clear_left_overs(const std::string& folder) {
  std::error_code ignored;
  for (const fs::path& path : entries_of(folder)) {
    const std::string name = path.filename().string();
    if (name.starts_with(kTemporary) || name.starts_with(kTrash) || name == std::string(kLatestName) + ".part")
      fs::remove_all(path, ignored);
  }
}

void prune_checkpoints(const std::string& folder, int64_t keep, const std::string& verified) {
  clear_left_overs(folder);  // first, as their names are needed below
  if (keep <= 0) return;
  const auto entries = list_checkpoints(folder);
  const std::string latest = latest_name(folder);
  for (size_t i = 0; i + static_cast<size_t>(keep) < entries.size(); ++i) {
    const std::string& path = entries[i].path;
    if (fs::path(path).filename() == latest || path == verified) continue;
    // Out of the way in one step, so that a kill in the middle leaves no half of a checkpoint under its name. What
    // cannot be removed is left for the next time.
    std::error_code ignored;
    fs::rename(path, trash_of(path), ignored);
  }
  clear_left_overs(folder);
}

std::vector<std::string> set_aside_in(const std::string& folder) {
  std::vector<std::string> paths;
  for (const fs::path& path : entries_of(folder)) {
    const std::string name = path.filename().string();
    for (const std::string_view prefix : {kTemporary, kTrash, kCorrupt, kAbandoned})
      if (name.starts_with(prefix)) paths.push_back(path.string());
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

void remove_checkpoint(const std::string& path) {
  const bool is_trash = fs::path(path).filename().string().starts_with(kTrash);
  const std::string trash = is_trash ? path : free_name(path, kTrash);
  const bool renamed = is_trash || std::rename(path.c_str(), trash.c_str()) == 0;
  check<IoError>(renamed, path, ": cannot be removed: ", reason(errno));
  std::error_code error;
  fs::remove_all(trash, error);
  check<IoError>(!error, trash, ": cannot be removed: ", error.message());
}

}  // namespace braid
