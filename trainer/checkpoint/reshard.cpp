#include "trainer/checkpoint/reshard.h"

#include <algorithm>
#include <filesystem>
#include <vector>

#include "kernels/core/durable_file.h"
#include "trainer/checkpoint/checkpoint_file.h"
#include "trainer/checkpoint/checkpoint_folder.h"
#include "trainer/checkpoint/manifest.h"

namespace braid {

namespace fs = std::filesystem;

namespace {

using LogicalTensor = CheckpointReader::LogicalTensor;

int64_t bytes_of(const LogicalTensor& tensor) { return tensor.shape.numel() * size_of(tensor.dtype); }

// The tensors behind one another, cut into equal parts between elements; a part of each that has a piece in it.
std::vector<std::vector<CheckpointExtent>> cut(const std::vector<LogicalTensor>& tensors, int64_t parts) {
  int64_t total = 0;
  for (const LogicalTensor& tensor : tensors) total += bytes_of(tensor);
  std::vector<std::vector<CheckpointExtent>> extents(static_cast<size_t>(parts));
  const int64_t part_bytes = std::max<int64_t>(1, (total + parts - 1) / parts);
  int64_t position = 0;
  for (const LogicalTensor& tensor : tensors) {
    const int64_t element = size_of(tensor.dtype), numel = tensor.shape.numel();
    int64_t begin = 0;
    do {
      const int64_t part = std::min(parts - 1, position / part_bytes);
      const int64_t room = part == parts - 1 ? numel : ((part + 1) * part_bytes - position + element - 1) / element;
      const int64_t end = std::min(numel, begin + room);
      extents[static_cast<size_t>(part)].push_back({tensor.name, tensor.dtype, tensor.shape, begin, end});
      position += (end - begin) * element;
      begin = end;
    } while (begin < numel);
  }
  return extents;
}

Manifest write_file(const CheckpointReader& from, const std::string& folder, int64_t number,
                    const std::vector<CheckpointExtent>& extents) {
  CheckpointFile file(folder, data_file_name("rank", number), extents);
  std::vector<uint64_t> memory(static_cast<size_t>(kDigestBlockBytes / 8));
  for (const CheckpointExtent& e : extents) {
    const int64_t most = kDigestBlockBytes / size_of(e.dtype);
    for (int64_t begin = e.begin; begin < e.end; begin += most) {
      const int64_t end = std::min(begin + most, e.end);
      CheckpointSlice slice{e.name, e.shape, begin, end, Tensor(memory.data(), e.dtype, {end - begin})};
      from.read(slice);
      file.write(slice.data.raw(), slice.data.bytes());
    }
  }
  return file.finish();
}

}  // namespace

void reshard_checkpoint(const CheckpointReader& from, const std::string& to, int64_t ranks) {
  const fs::path source = fs::canonical(from.path()), target = fs::weakly_canonical(to);
  const bool is_inside =
      std::mismatch(source.begin(), source.end(), target.begin(), target.end()).first == source.end();
  check<ConfigError>(!is_inside, to, ": lies in the checkpoint that is read");
  const std::string run = run_folder_of(target.string());
  check<ConfigError>(run.empty() || !fs::exists(fs::path(run) / "LOCK"), to, ": is where run ", run,
                     " keeps its own checkpoints; --resume-from takes one from any folder");
  DurableFolder folder(to);
  Manifest manifest;
  manifest.info = from.info();
  manifest.info.num_ranks = ranks;
  manifest.info.expert_parallel = 1;
  const auto parts = cut(from.tensors(), ranks);
  for (int64_t rank = 0; rank < ranks; ++rank)
    manifest.append(write_file(from, folder.temporary(), rank, parts[static_cast<size_t>(rank)]));
  manifest.check_coverage(to);
  write_file_atomically(folder.temporary() + "/" + kManifestName, manifest.to_text());
  folder.finish();
}

}  // namespace braid
