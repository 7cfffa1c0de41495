#include "data/corpus/documents.h"

#include <filesystem>

#include "data/corpus/text_input.h"

namespace braid {

namespace fs = std::filesystem;

NamedDataset open_whole_dataset(const std::string& path) {
  if (fs::exists(manifest_path(path))) {
    const std::vector<std::string> wrong = verify_dataset(path);
    check<DataError>(wrong.empty(), wrong.empty() ? "" : wrong.front(), "; the dataset is damaged: `braid data verify ",
                     path, "` lists it all");
    return {path, dataset_shards(path), read_manifest(path)};
  }
  NamedDataset dataset{path, paths_of(list_inputs({path}, ".h5")), {}};
  DatasetManifest& m = dataset.manifest;
  for (const std::string& file : dataset.shards) {
    const ShardInfo info = TokenShard(file).info();
    if (m.shards.empty()) {
      m.tokenizer = info.tokenizer;
      m.tokenizer_digest = info.tokenizer_digest;
      m.vocab_size = info.vocab_size;
      m.end_of_document = info.end_of_document;
    }
    check<DataError>(info.tokenizer_digest == m.tokenizer_digest && info.vocab_size == m.vocab_size &&
                         info.end_of_document == m.end_of_document,
                     file, ": was made with tokenizer ", info.tokenizer, " ", info.tokenizer_digest, ", but ",
                     dataset.shards.front(), " with ", m.tokenizer, " ", m.tokenizer_digest);
    m.shards.push_back(describe_shard(fs::path(file).parent_path().string(), fs::path(file).filename().string()));
  }
  return dataset;
}

}  // namespace braid
