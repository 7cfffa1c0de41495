#include "trainer/checkpoint/checkpoint.h"

#include <filesystem>

#include "kernels/core/durable_file.h"
#include "kernels/core/file_text.h"
#include "parallel/rank_text.h"
#include "trainer/checkpoint/checkpoint_file.h"
#include "trainer/checkpoint/device_slices.h"
#include "trainer/checkpoint/manifest.h"
#include "trainer/metrics/run_search.h"

namespace braid {

namespace fs = std::filesystem;

namespace {

// The C++ library's own file system errors, in our words.
template <class Body>
auto with_io_errors(Body&& body) {
  try {
    return body();
  } catch (const fs::filesystem_error& e) {
    throw IoError(concat(e.path1().string(), ": ", e.code().message()));
  }
}

// Writes a rank's slices into a file of `folder`.   Returns the rank's part of the manifest.
Manifest write_shard(Context& ctx, const fs::path& folder, int rank, const std::vector<CheckpointSlice>& slices) {
  std::vector<CheckpointExtent> extents;
  for (const CheckpointSlice& s : slices) {
    check_slice(s);
    extents.push_back({s.name, s.data.dtype(), s.shape, s.begin, s.end});
  }
  CheckpointFile file(folder.string(), data_file_name("rank", rank), extents);
  visit_on_host(ctx, slices, [&](const Tensor& part) { file.write(part.raw(), part.bytes()); });
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
void give_name(const fs::path& temporary, const fs::path& path) {
  const fs::path trash = trash_of(path.string());
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
  fs::remove_all(trash, ignored);  // what stays is removed by pruning
}

}  // namespace

CheckpointSave::CheckpointSave(const std::string& folder, const CheckpointInfo& info, int rank)
    : info_(info),
      rank_(rank),
      path_((fs::path(folder) / step_name(info.step)).string()),
      temporary_(temporary_of(path_)) {}

void CheckpointSave::prepare() {
  with_io_errors([&] {
    create_folder(fs::path(path_).parent_path().string());
    fs::remove_all(temporary_);
    create_folder(temporary_);
  });
}

std::string CheckpointSave::write(Context& ctx, const std::vector<CheckpointSlice>& slices) {
  return part_ = write_shard(ctx, temporary_, rank_, slices).to_text();
}

void CheckpointSave::commit(const std::vector<std::string>& parts) {
  with_io_errors([&] {
    manifest_text_ = joined(info_, parts, path_).to_text();
    Manifest::parse(manifest_text_, path_).check_coverage(path_);  // as it will be read
    write_file_atomically((fs::path(temporary_) / kManifestName).string(), manifest_text_);
    // First, as what LATEST does not name is not gone on from; until the rename it names nothing, which does no harm.
    write_latest(fs::path(path_).parent_path().string(), fs::path(path_).filename().string());
    give_name(temporary_, path_);
  });
  is_committed_ = true;
}

void CheckpointSave::read_back() const {
  check_data_file(path_, Manifest::parse(part_, path_));
  const std::string manifest = (fs::path(path_) / kManifestName).string();
  check<CheckpointError>(!is_committed_ || file_text(manifest) == manifest_text_, manifest,
                         ": holds other bytes than were written");
}

void CheckpointSave::drop() noexcept {
  std::error_code ignored;
  fs::remove_all(temporary_, ignored);
  if (is_committed_) fs::rename(path_, free_corrupt_name(path_), ignored);
}

std::string save_checkpoint(Context& ctx, Communicator& world, const std::string& folder, const CheckpointInfo& info,
                            const std::vector<CheckpointSlice>& slices) {
  CheckpointSave save(folder, info, world.rank());
  // A stage in which rank 0 alone acts.
  const auto on_first_rank = [&](const std::function<void()>& body) {
    all_or_none(ctx, world, [&] {
      if (world.rank() == 0) body();
      return std::string();
    });
  };
  try {
    on_first_rank([&] { save.prepare(); });
    const auto parts = all_or_none(ctx, world, [&] { return save.write(ctx, slices); });
    on_first_rank([&] { save.commit(parts); });
  } catch (...) {
    if (world.rank() == 0) save.drop();
    throw;
  }
  return save.path();
}

namespace {

std::string checkpoint_folder_in(const std::string& path) {
  std::error_code ignored;
  if (fs::exists(fs::path(path) / kManifestName, ignored)) return path;
  const fs::path in_run = fs::path(path) / "checkpoints";
  const auto checkpoints = branch_checkpoints(fs::exists(in_run, ignored) ? in_run.string() : path);
  const bool is_foreign = checkpoints.empty() && fs::exists(fs::path(path) / "config.json", ignored);
  check<CheckpointError>(!is_foreign, path, ": is a Hugging Face folder; init.from takes it as hf:", path,
                         ", and `braid ckpt import --from ", path, " --to DIR` makes a checkpoint of it");
  if (checkpoints.empty())
    throw CheckpointError(concat(path, ": neither a checkpoint nor a run folder with one", runs_inside(path)));
  return checkpoints.front().path;
}

}  // namespace

CheckpointReader open_checkpoint(const std::string& path) { return CheckpointReader(checkpoint_folder_in(path)); }

CheckpointReader open_checkpoint(Context& ctx, Communicator& world, const std::string& path) {
  return CheckpointReader(ctx, world, from_first_rank(ctx, world, [&] { return checkpoint_folder_in(path); }));
}

}  // namespace braid
