#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "data/corpus/dataset_manifest.h"
#include "data/tokenizer/tokenizer.h"

namespace braid {

struct ConvertOptions {
  std::string from, to;                       // file; folder to make
  std::string dtype;                          // of raw tokens: "u16", "u32"; empty for files that say it
  std::optional<int64_t> end_of_document;     // id; needed where the file does not say where documents end
  std::optional<int64_t> vocab_size;          // default: largest id + 1
  const Tokenizer* tokenizer = nullptr;       // that made the tokens: gives both and its digest
  int64_t shard_tokens = int64_t{1} << 28;
};

// Makes a dataset of the tokens of another framework:
//   Megatron-LM     NAME.idx and NAME.bin (either may be named), tokens of 8, 16, 32 or 64 bits; its documents
//   llm.c           .bin with magic 20240520 (u16, <|endoftext|> 50256) or 20240801 (u32, 128000) in front of each document
//   numpy           .npy, 1-D, <u2 or <u4
//   raw             anything else, with `dtype`
// Where the file names no documents, they end behind the end-of-document id. Where it does, but they do not all end with one and
// the same id, and none is given, largest id + 1 becomes the end-of-document id.
// Errors: DataError naming file and what is wrong in it; IoError if `to` holds anything already.
DatasetManifest convert_tokens(const ConvertOptions& options);

}  // namespace braid
