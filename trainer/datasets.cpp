#include "trainer/datasets.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
#include <utility>

#include "data/corpus/dataset_manifest.h"
#include "data/corpus/text_input.h"
#include "data/tokenizer/tokenizer.h"
#include "kernels/core/raw_file.h"
#include "kernels/core/sha256.h"

namespace braid {

namespace fs = std::filesystem;

namespace {

// Sources, then validation sets.
std::vector<const TokenFiles*> all_files(const DataConfig& data) {
  std::vector<const TokenFiles*> all;
  for (const SourceConfig& source : data.sources) all.push_back(&source);
  for (const TokenFiles& set : data.validation_sets) all.push_back(&set);
  return all;
}

}  // namespace

std::vector<std::string> shard_paths(const TokenFiles& source, const std::string& run_dir) {
  if (!source.dataset.empty()) return dataset_shards(source.dataset);
  if (source.text.empty()) return paths_of(list_inputs(source.shards, ".h5"));
  return {(fs::path(run_dir) / "data" / (source.name + ".h5")).string()};
}

int64_t prepare_shards(const DataConfig& data, const std::string& run_dir, ShardsOnDisk on_disk) {
  int64_t met_again = 0;
  for (const TokenFiles* source : all_files(data)) {
    if (source->text.empty()) continue;
    const std::string path = shard_paths(*source, run_dir).front();
    if (on_disk == ShardsOnDisk::kKeep && fs::exists(path)) continue;
    std::error_code error;
    fs::create_directories(fs::path(path).parent_path(), error);
    check<IoError>(!error, fs::path(path).parent_path().string(), ": cannot create the folder: ", error.message());
    const InputList inputs = list_inputs(source->text);
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

// Of a shard: its size and its bytes at 64 places. A copy under another name has the same.
std::string sample_of(const std::string& path) {
  constexpr int64_t kPlaces = 64, kBytes = 4096;
  const RawFile file = RawFile::open(path);
  Sha256 digest;
  std::string block(kBytes, '\0');
  for (int64_t place = 0; place < kPlaces; ++place) {
    const int64_t begin = std::max<int64_t>(0, file.size() - kBytes) * place / (kPlaces - 1);
    const int64_t bytes = std::min(kBytes, file.size() - begin);
    file.read(block.data(), bytes, begin);
    digest.update(block.data(), bytes);
  }
  return concat(file.size(), ' ', digest.hex());
}

}  // namespace

void check_no_leak(const RunConfig& config) {
  struct Owner {
    const TokenFiles* files;
    bool is_set;
  };
  std::map<std::string, Owner> owner_of;  // by the file, and by what is in a shard
  const size_t num_sources = config.data.sources.size();
  const std::vector<const TokenFiles*> all = all_files(config.data);
  for (size_t i = 0; i < all.size(); ++i) {
    const Owner here{all[i], i >= num_sources};
    const std::vector<std::string> files =
        here.files->text.empty() ? shard_paths(*here.files, config.run.dir) : paths_of(list_inputs(here.files->text));
    const auto claim = [&](const std::string& key, const std::string& file) {
      const auto [first, is_new] = owner_of.emplace(key, here);
      if (is_new || first->second.files == here.files || first->second.is_set) return;
      check<DataError>(!here.is_set, file, ": is part of source ", first->second.files->name,
                       ", which trains on it, and of validation set ", here.files->name);
      check<DataError>(config.data.validation_fraction == 0, file, ": is part of source ", first->second.files->name,
                       " and of source ", here.files->name,
                       ", so that what one holds out the other trains on; name it "
                       "once, or set data.validation_fraction to 0");
    };
    for (const std::string& file : files) {
      claim(fs::canonical(file).string(), file);
      if (here.files->text.empty() && all.size() > 1) claim(sample_of(file), file);
    }
  }
}

void check_data_is_there(const RunConfig& config) {
  for (const TokenFiles* source : all_files(config.data)) {
    if (!source->text.empty()) {
      check_texts_begin(paths_of(list_inputs(source->text)));
      check<DataError>(ByteTokenizer::kVocabSize <= config.model.vocab_size, "source ", source->name,
                       ": its vocabulary of ", ByteTokenizer::kVocabSize, " ids (bytes) does not fit model.vocab_size ",
                       config.model.vocab_size);
      continue;
    }
    for (const std::string& path : shard_paths(*source, config.run.dir))
      check_vocabulary(config, TokenShard(path, CheckOffsets::kWhenRead).info());
  }
  check_no_leak(config);
}

Datasets open_datasets(const RunConfig& config) {
  Datasets data;
  const auto open = [&](const TokenFiles& files, double fraction) {
    auto source = std::make_shared<const TokenSource>(files.name, shard_paths(files, config.run.dir),
                                                      config.train.seq_length, fraction);
    const ShardInfo& here = source->shards().front().info();
    const TokenSource& first_source = data.train.empty() ? *source : data.train.front().source();
    const ShardInfo& first = first_source.shards().front().info();
    check<DataError>(here.tokenizer_digest == first.tokenizer_digest && here.end_of_document == first.end_of_document,
                     "source ", files.name, " was made with tokenizer ", here.tokenizer, " ", here.tokenizer_digest,
                     ", but source ", first_source.name(), " with ", first.tokenizer, " ", first.tokenizer_digest,
                     "; all sources of a run need the same");
    for (const TokenShard& shard : source->shards()) check_vocabulary(config, shard.info());
    return source;
  };
  for (const SourceConfig& files : config.data.sources) {
    const auto source = open(files, config.data.validation_fraction);
    data.train.emplace_back(source, Split::kTrain);
    data.validation.emplace_back(source, Split::kValidation);
  }
  for (const TokenFiles& files : config.data.validation_sets)
    data.validation.emplace_back(open(files, 0), Split::kTrain);  // all of it
  return data;
}

Mixture mixture_of(const RunConfig& config, const BatchSizes& batch_sizes) {
  std::vector<MixtureInterval> intervals;
  for (const int64_t step : config.data.steps_of_weights()) {
    MixtureInterval interval{batch_sizes.rows_of_first(step - 1), {}};
    for (const SourceConfig& source : config.data.sources) interval.weights.push_back(source.weight_at(step));
    intervals.push_back(std::move(interval));
  }
  return Mixture(std::move(intervals));
}

BatchPlan batch_plan(const RunConfig& config, const BatchSizes& batch_sizes) {
  BatchPlan plan;
  plan.global_batch_size = batch_sizes;
  plan.micro_batch_size = config.train.micro_batch_size;
  plan.seed = static_cast<uint64_t>(config.train.seed);
  plan.mixture = mixture_of(config, batch_sizes);
  plan.prefetch_steps = config.data.prefetch_steps;
  return plan;
}

BatchPlan batch_plan(const RunConfig& config, const BatchSizes& batch_sizes, const ProcessMesh& mesh) {
  BatchPlan plan = batch_plan(config, batch_sizes);
  plan.num_ranks = mesh.num_data_ranks();
  plan.rank = mesh.data_rank();
  plan.share = mesh.share();
  return plan;
}

Mixture mixture_of(const RunConfig& config) { return mixture_of(config, batch_sizes_of(config)); }

BatchSizes batch_sizes_of(const RunConfig& config) {
  BatchSizes sizes = config.train.global_batch_size;
  go_on_with(sizes, 0, config);
  return sizes;
}

BatchSizes batch_sizes_of(const CheckpointInfo& info, const RunConfig& stored) {
  BatchSizes sizes =
      info.batch_sizes.empty() ? BatchSizes(stored.train.global_batch_size) : BatchSizes(info.batch_sizes);
  for (const BatchSizes::LeftOut& l : info.left_out) sizes.leave_out(l[0], l[1]);
  return sizes;
}

void go_on_with(BatchSizes& sizes, int64_t steps, const RunConfig& config) {
  sizes.change(steps, config.train.global_batch_size);
  const std::vector<BatchSizes::LeftOut> before = sizes.left_out();
  for (const LeftOutConfig& l : config.data.left_out) {
    if (l.after_step >= steps) {
      sizes.leave_out(l.after_step, l.rows);
      continue;
    }
    check<ConfigError>(
        std::find(before.begin(), before.end(), BatchSizes::LeftOut{l.after_step, l.rows}) != before.end(),
        "data.left_out leaves out ", l.rows, " rows after step ", l.after_step, ", but the run is after step ", steps,
        " already and did not");
  }
}

std::string data_digest(const RunConfig& config, const std::vector<TokenDataset>& train) {
  Sha256 digest;
  auto add = [&](const std::string& text) { digest.update(text.data(), text.size() + 1); };
  add(concat(config.train.seq_length, ' ', config.data.validation_fraction));
  for (const TokenDataset& source : train) {
    add(source.name());
    for (const TokenShard& shard : source.shards()) {
      const ShardInfo& info = shard.info();
      add(concat(info.num_tokens, ' ', info.num_documents, ' ', info.vocab_size, ' ', info.tokenizer_digest, ' ',
                 info.source_digest));
    }
    add(source.source().documents_digest());
  }
  return digest.hex();
}

bool is_trained_on(const CheckpointInfo& info, const RunConfig& config, const Datasets& data) {
  return info.data_digest.starts_with(data_digest(config, data.train));  // that of the tokens follows
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
