#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace braid {

// DIR/dataset.json: what a folder of shards holds, with a digest of every file, and a CRC-32C of every block, so that
// damage is found and named.
struct DatasetManifest {
  static constexpr int64_t kBlockBytes = int64_t{1} << 20;

  struct Shard {
    std::string file;  // its name in the folder
    int64_t num_tokens = 0, num_documents = 0, bytes = 0;
    std::string sha256;
    std::vector<uint32_t> block_crc32c;  // of every kBlockBytes of the file, the last may be shorter
  };
  std::string tokenizer, tokenizer_digest;
  std::string tokenizer_file;  // its name in the folder; empty for bytes
  int64_t vocab_size = 0, end_of_document = 0;
  std::string source_digest;  // of what it was made from
  // What was met on the way: records that could not be read, places that were not UTF-8, files met twice.
  int64_t unreadable = 0, repaired = 0, met_again = 0;
  std::vector<Shard> shards;

  int64_t num_tokens() const;
  int64_t num_documents() const;
};

// Errors: DataError naming the file and what is wrong in it.
DatasetManifest read_manifest(const std::string& folder);
std::string manifest_path(const std::string& folder);
DatasetManifest parse_manifest(const std::string& text, const std::string& path);  // `path` names it in errors
std::string to_json(const DatasetManifest& manifest);
// Whole, or not at all.   Errors: IoError.
void write_manifest(const std::string& folder, const DatasetManifest& manifest);

// Reads a finished shard for its entry in the manifest.   Errors: DataError.
DatasetManifest::Shard describe_shard(const std::string& folder, const std::string& file);

// Paths of the shards of a dataset folder, in order. Checks that each is there with its size.   Errors: DataError.
std::vector<std::string> dataset_shards(const std::string& folder);

// Compares every byte with the manifest. Returns one sentence for each thing that is wrong: file, what, and for damage
// the bytes and tokens of the block.
std::vector<std::string> verify_dataset(const std::string& folder);

}  // namespace braid
