#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "data/corpus/dataset_manifest.h"
#include "data/token_shard.h"

namespace braid {

// Documents to the shards of a dataset: shard-00000.h5 and so on, each ending with the document that reaches
// `shard_tokens`. A finished shard is entered into the manifest, which the caller owns; its other fields say how the
// shards are made.
// Errors: IoError; DataError for an id outside the vocabulary.
class DatasetWriter {
 public:
  // Goes on behind the shards that the manifest has.
  DatasetWriter(std::string folder, DatasetManifest& manifest, int64_t shard_tokens)
      : folder_(std::move(folder)), manifest_(manifest), shard_tokens_(shard_tokens) {}

  void append(std::span<const uint32_t> tokens);  // to the document
  bool end_document();                            // puts its id behind it; true if that finished a shard
  bool finish_shard();                            // at the end of a document; false if none was begun
  void finish();                                  // finish_shard, then dataset.json

 private:
  void begin_shard();

  std::string folder_, name_;
  DatasetManifest& manifest_;
  int64_t shard_tokens_, tokens_ = 0;
  std::unique_ptr<TokenShardWriter> shard_;
};

}  // namespace braid
