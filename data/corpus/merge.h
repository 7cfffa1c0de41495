#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/corpus/dataset_manifest.h"

namespace braid {

// Each `from` is a dataset, or shards (open_whole_dataset). What is made appears whole or not at all.
// Errors: DataError, also for damaged input; IoError.

// One dataset of the documents of several, in their order; all of one tokenizer, and no shard in two of them.
DatasetManifest merge_datasets(const std::vector<std::string>& from, const std::string& to, int64_t shard_tokens);

struct SplitOptions {
  std::string from, to;
  // <to>/part-00000 and on: runs of documents with about equally many tokens; merged they are `from` again.
  int64_t parts = 0;
  // Instead: <to>/train and <to>/held-out, this share of the documents, chosen by a hash of their index.
  double held_out = 0;
  int64_t shard_tokens = int64_t{1} << 28;
};
struct SplitPart {
  std::string folder;
  DatasetManifest manifest;
};
// Errors: DataError also if a part would have no document.
std::vector<SplitPart> split_dataset(const SplitOptions& options);

}  // namespace braid
