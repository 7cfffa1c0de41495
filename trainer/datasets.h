#pragma once

#include <string>
#include <vector>

#include "data/batch_stream.h"
#include "data/mixture.h"
#include "data/token_dataset.h"
#include "parallel/process_mesh.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/config/config.h"

namespace braid {

// Shards of a source or validation set: its own, or the one tokenized from its text into <run.dir>/data/<name>.h5.
std::vector<std::string> shard_paths(const TokenFiles& source, const std::string& run_dir);

enum class ShardsOnDisk {
  kCheck,  // one of other text is made anew
  kKeep,   // a resumed run goes on with those that it began with, whatever has become of the text since
};
// Tokenizes the sources and validation sets that are given as text; a shard made from the same text stays. One rank
// only. Returns how many text files were met twice, by a link or a second name; they are taken once.
int64_t prepare_shards(const DataConfig& data, const std::string& run_dir, ShardsOnDisk on_disk);

// What one source holds out, another would train on, as the choice depends on the source.
// Errors: DataError if two sources name the same file and anything is held out, or a source and a validation set do.
void check_no_leak(const RunConfig& config);

// Opens what the config names, as far as that can be done without a run: shards, vocabularies, text files; and
// check_no_leak.   Errors: DataError.
void check_data_is_there(const RunConfig& config);

// Both parts of every source; behind the held-out parts the validation sets.
struct Datasets {
  std::vector<TokenDataset> train, validation;
};
// Errors: DataError, also if a shard's vocabulary is larger than the model's.
Datasets open_datasets(const RunConfig& config);

// Which source the samples of the run come from. Steps had these rows; those of the config, if nothing else is known.
// Errors: ConfigError if all weights are 0 somewhere.
Mixture mixture_of(const RunConfig& config, const BatchSizes& batch_sizes);
Mixture mixture_of(const RunConfig& config);

// Which rows this rank trains on at every step.
BatchPlan batch_plan(const RunConfig& config, const BatchSizes& batch_sizes);  // of all rows, whole
BatchPlan batch_plan(const RunConfig& config, const BatchSizes& batch_sizes,
                     const ProcessMesh& mesh);  // of what this rank holds

// Those of a run from its beginning.
BatchSizes batch_sizes_of(const RunConfig& config);
// Those of the run that a checkpoint was saved by, up to there; one before format 1.2 knows its config's alone.
BatchSizes batch_sizes_of(const CheckpointInfo& info, const RunConfig& stored);
// A run with `config` goes on behind these `steps` steps: what its config wants of the steps to come.
// Errors: ConfigError if data.left_out speaks of steps before that left out nothing.
void go_on_with(BatchSizes& sizes, int64_t steps, const RunConfig& config);

// SHA-256 over what decides which rows there are: the shards' sizes, tokenizers, document boundaries and how rows are
// cut.
std::string data_digest(const RunConfig& config, const std::vector<TokenDataset>& train);

// Do the data's documents still have the digest that a checkpoint holds?
bool is_trained_on(const CheckpointInfo& info, const RunConfig& config, const Datasets& data);

// SHA-256 over the tokens of a source: all of them up to 16 Mi, evenly spaced pieces of as many in larger ones, so that
// it costs the same whatever the size.   Errors: DataError, also for a token outside the vocabulary.
std::string contents_digest(const TokenDataset& data);

}  // namespace braid
