#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "data/corpus/dataset_manifest.h"
#include "data/tokenizer/tokenizer.h"

namespace braid {

struct ConvertOptions {
  std::string from, to;                    // file (open_foreign_tokens); folder to make
  std::string dtype;                       // of raw tokens: "u16", "u32"; empty for files that say it
  std::optional<int64_t> end_of_document;  // id; needed where the file does not say where documents end
  std::optional<int64_t> vocab_size;       // default: what the file says, or largest id + 1
  const Tokenizer* tokenizer = nullptr;    // that made the tokens: gives both and its digest
  int64_t shard_tokens = int64_t{1} << 28;
};

// Makes a dataset of the tokens of another framework. Where the file names no documents, they end behind the
// end-of-document id. Where it does, but they do not all end with one and none is named, each gets one behind the
// largest id. The folder appears whole or not at all.
// Errors: DataError naming the file and what is wrong with it; IoError.
DatasetManifest convert_tokens(const ConvertOptions& options);

}  // namespace braid
