#include "trainer/huggingface/import.h"

#include <algorithm>
#include <span>

#include "kernels/build_info.h"
#include "kernels/core/durable_file.h"
#include "trainer/checkpoint/checkpoint_file.h"
#include "trainer/config/config_reader.h"
#include "trainer/huggingface/weight_blocks.h"

namespace braid {
namespace {

constexpr int64_t kContextTokens = 4096;  // that generation plans its memory for

CheckpointInfo info_of(const HuggingFaceReader& source) {
  RunConfig config;
  config.model = source.config();
  config.mtp.depth = source.has_mtp() ? 1 : 0;
  config.train.seq_length = std::min(kContextTokens, config.model.max_position_embeddings);
  CheckpointInfo info;
  info.config_yaml = to_yaml(config);
  info.build_id = kBuildId;
  info.parameter_table = format_parameter_table(source.parameters());
  return info;
}

// A range of a parameter that lies in one data file.
struct Part {
  TypedParameter typed;
  int64_t begin, end;

  int64_t bytes() const { return (end - begin) * size_of(typed.dtype); }
  CheckpointExtent extent() const {
    return {weights_name(typed.parameter), typed.dtype, typed.parameter.shape, begin, end};
  }
};

std::vector<Part> parts_of(const HuggingFaceReader& source, int64_t max_bytes) {
  std::vector<Part> parts;
  for (const Parameter& p : source.parameters()) {
    const DType dtype = source.stored_dtype(p);
    const int64_t numel = p.shape.numel(), longest = max_bytes / size_of(dtype);
    for (int64_t begin = 0; begin < numel; begin += longest)
      parts.push_back({{p, dtype}, begin, std::min(begin + longest, numel)});
  }
  return parts;
}

Manifest write_file(const HuggingFaceReader& source, const std::string& folder, const std::string& name,
                    std::span<const Part> parts) {
  std::vector<CheckpointExtent> extents;
  for (const Part& part : parts) extents.push_back(part.extent());
  CheckpointFile file(folder, name, extents);
  for (const Part& part : parts)
    for_each_block(source, part.typed, part.begin, part.end,
                   [&](const Tensor& block) { file.write(block.raw(), block.bytes()); });
  return file.finish();
}

}  // namespace

void import_model(const HuggingFaceReader& source, const std::string& checkpoint, int64_t max_file_bytes) {
  const std::vector<Part> parts = parts_of(source, max_file_bytes);
  std::vector<int64_t> bytes;
  for (const Part& part : parts) bytes.push_back(part.bytes());

  DurableFolder folder(checkpoint);
  Manifest manifest;
  manifest.info = info_of(source);
  for (const auto& [first, last] : deal_to_files(bytes, max_file_bytes))
    manifest.append(write_file(source, folder.temporary(), data_file_name("weights", std::ssize(manifest.files)),
                               std::span(parts).subspan(first, last - first)));
  manifest.check_coverage(checkpoint);
  write_file_atomically(folder.temporary() + "/" + kManifestName, manifest.to_text());
  folder.finish();
}

}  // namespace braid
