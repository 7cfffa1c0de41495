#include "data/corpus/dataset_writer.h"

#include <filesystem>

#include "kernels/core/error.h"

namespace braid {

void DatasetWriter::begin_shard() {
  if (shard_) return;
  const std::string number = std::to_string(manifest_.shards.size());
  name_ = concat("shard-", std::string(number.size() < 5 ? 5 - number.size() : 0, '0'), number, ".h5");
  shard_ =
      std::make_unique<TokenShardWriter>((std::filesystem::path(folder_) / name_).string(), manifest_.vocab_size,
                                         manifest_.end_of_document, manifest_.tokenizer, manifest_.tokenizer_digest);
}

void DatasetWriter::append(std::span<const uint32_t> tokens) {
  begin_shard();
  shard_->append(tokens);
  tokens_ += static_cast<int64_t>(tokens.size());
}

bool DatasetWriter::end_document() {
  begin_shard();
  shard_->end_document();
  return ++tokens_ >= shard_tokens_ && finish_shard();
}

bool DatasetWriter::finish_shard() {
  if (!shard_) return false;
  shard_->close();
  shard_.reset();
  tokens_ = 0;
  manifest_.shards.push_back(describe_shard(folder_, name_));
  return true;
}

void DatasetWriter::finish() {
  finish_shard();
  write_manifest(folder_, manifest_);
}

}  // namespace braid
