#pragma once

#include <string>
#include <vector>

#include "data/token_dataset.h"
#include "trainer/config/config.h"

namespace braid {

// Shards of a source: its own, or the one tokenized from its text into <run.dir>/data/<name>.h5.
std::vector<std::string> shard_paths(const SourceConfig& source, const std::string& run_dir);

// Tokenizes the sources that are given as text; a shard made from the same text stays. A resumed run keeps the shards
// it began with, whatever has become of the text since. One rank only.
// Returns how many text files were met twice, by a link or a second name; they are taken once.
enum class ShardsOnDisk { kCheck, kKeep };
int64_t prepare_shards(const DataConfig& data, const std::string& run_dir, ShardsOnDisk on_disk);

// What one source holds out, another would train on, as the choice depends on the source.
// Errors: DataError if two sources name the same file and anything is held out.
void check_no_leak(const RunConfig& config);

// Opens what the config names, as far as that can be done without a run: shards, vocabularies, text files; and check_no_leak.
// Errors: DataError.
void check_data_is_there(const RunConfig& config);

// One dataset per source.   Errors: DataError, also if a shard's vocabulary is larger than the model's.
std::vector<TokenDataset> open_datasets(const RunConfig& config, Split split);

// SHA-256 over what decides which rows there are: the shards' sizes, tokenizers, document boundaries and how rows are
// cut.
std::string data_digest(const RunConfig& config, const std::vector<TokenDataset>& train);

// SHA-256 over the tokens of a source: all of them up to 16 Mi, evenly spaced pieces of as many in larger ones, so that
// it costs the same whatever the size.   Errors: DataError, also for a token outside the vocabulary.
std::string contents_digest(const TokenDataset& data);

}  // namespace braid
