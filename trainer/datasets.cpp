#include "trainer/datasets.h"

#include <algorithm>
#include <filesystem>
#include <map>

#include "data/corpus/dataset_manifest.h"
#include "data/corpus/text_input.h"
#include "data/tokenizer/tokenizer.h"
#include "kernels/core/sha256.h"

namespace braid {

namespace fs = std::filesystem;

std::vector<std::string> shard_paths(const SourceConfig& source, const std::string& run_dir) {
  if (!source.dataset.empty()) return dataset_shards(source.dataset);
  if (source.text.empty()) return paths_of(list_inputs(source.shards, ".h5"));
  return {(fs::path(run_dir) / "data" / (source.name + ".h5")).string()};
}

int64_t prepare_shards(const DataConfig& data, const std::string& run_dir, ShardsOnDisk on_disk) {
  int64_t met_again = 0;
  for (const SourceConfig& source : data.sources) {
    if (source.text.empty()) continue;
    const std::string path = shard_paths(source, run_dir).front();
    if (on_disk == ShardsOnDisk::kKeep && fs::exists(path)) continue;
    std::error_code error;
    fs::create_directories(fs::path(path).parent_path(), error);
    check<IoError>(!error, fs::path(path).parent_path().string(), ": cannot create the folder: ", error.message());
    const InputList inputs = list_inputs(source.text);
    met_again += inputs.met_again;
    tokenize_files(paths_of(inputs), path);
  }
  return met_again;
}

namespace {

void check_vocabulary(const RunConfig& config, const ShardInfo& info) {
  check<DataError>(info.vocab_size <= config.model.vocab_size, info.path, ": its vocabulary of ", info.vocab_size,
                   " ids does not fit model.vocab_size ", config.model.vocab_size);
}

}  // namespace

void check_no_leak(const RunConfig& config) {
  if (config.data.validation_fraction == 0) return;
  std::map<std::string, std::string> source_of;  // by the file
  for (const SourceConfig& source : config.data.sources) {
    const std::vector<std::string> files =
        source.text.empty() ? shard_paths(source, config.run.dir) : paths_of(list_inputs(source.text));
    for (const std::string& file : files) {
      const auto [first, is_new] = source_of.emplace(fs::canonical(file).string(), source.name);
      check<DataError>(is_new || first->second == source.name, file, ": is part of source ", first->second, " and of source ",
                       source.name, ", so that what one holds out the other trains on; name it once, or set "
                       "data.validation_fraction to 0");
    }
  }
}

void check_data_is_there(const RunConfig& config) {
  for (const SourceConfig& source : config.data.sources) {
    if (!source.text.empty()) {
      list_inputs(source.text);
      check<DataError>(ByteTokenizer::kVocabSize <= config.model.vocab_size, "source ", source.name, ": its vocabulary of ",
                       ByteTokenizer::kVocabSize, " ids (bytes) does not fit model.vocab_size ", config.model.vocab_size);
      continue;
    }
    for (const std::string& path : shard_paths(source, config.run.dir)) check_vocabulary(config, TokenShard(path).info());
  }
  check_no_leak(config);
}

std::vector<TokenDataset> open_datasets(const RunConfig& config, Split split) {
  std::vector<TokenDataset> datasets;
  for (const SourceConfig& source : config.data.sources) {
    datasets.emplace_back(source.name, shard_paths(source, config.run.dir), config.train.seq_length, split,
                          config.data.validation_fraction);
    const ShardInfo &first = datasets.front().shards().front().info(), &here = datasets.back().shards().front().info();
    check<DataError>(here.tokenizer_digest == first.tokenizer_digest && here.end_of_document == first.end_of_document,
                     "source ", source.name, " was made with tokenizer ", here.tokenizer, " ", here.tokenizer_digest,
                     ", but source ", datasets.front().name(), " with ", first.tokenizer, " ", first.tokenizer_digest,
                     "; all sources of a run need the same");
    for (const TokenShard& shard : datasets.back().shards()) check_vocabulary(config, shard.info());
  }
  return datasets;
}

std::string data_digest(const RunConfig& config, const std::vector<TokenDataset>& train) {
  Sha256 digest;
  auto add = [&](const std::string& text) { digest.update(text.data(), text.size() + 1); };
  add(concat(config.train.seq_length, ' ', config.data.validation_fraction));
  for (size_t i = 0; i < train.size(); ++i) {
    add(concat(train[i].name(), ' ', config.data.sources[i].weight));
    for (const TokenShard& shard : train[i].shards()) {
      const ShardInfo& info = shard.info();
      add(concat(info.num_tokens, ' ', info.num_documents, ' ', info.vocab_size, ' ', info.tokenizer_digest, ' ',
                 info.source_digest));
      const auto& offsets = shard.document_offsets();
      digest.update(offsets.data(), offsets.size() * sizeof(offsets[0]));
    }
  }
  return digest.hex();
}

std::string contents_digest(const TokenDataset& data) {
  constexpr int64_t kPiece = int64_t{16} << 10, kMostPieces = 1024;
  int64_t pieces = 0;  // of all shards; the last one of a shard may be shorter
  for (const TokenShard& shard : data.shards()) pieces += (shard.info().num_tokens + kPiece - 1) / kPiece;
  const int64_t read = std::min(pieces, kMostPieces);
  Sha256 digest;
  std::vector<uint32_t> tokens(kPiece);
  int64_t piece = 0, done = 0;  // piece i of those that are read is number i * pieces / read
  for (const TokenShard& shard : data.shards()) {
    for (int64_t begin = 0; begin < shard.info().num_tokens; begin += kPiece, ++piece) {
      if (done == read || piece != done * pieces / read) continue;
      const int64_t end = std::min(begin + kPiece, shard.info().num_tokens);
      shard.read(begin, end, tokens.data());
      digest.update(tokens.data(), static_cast<size_t>(end - begin) * sizeof(tokens[0]));
      ++done;
    }
  }
  return digest.hex();
}

}  // namespace braid
