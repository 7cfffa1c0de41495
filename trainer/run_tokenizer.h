#pragma once

#include <memory>
#include <string>
#include <vector>

#include "data/token_dataset.h"
#include "data/tokenizer/tokenizer.h"

namespace braid {

// The tokenizer of a run stays with it, as <run.dir>/tokenizer.json (none for bytes), and <run.dir>/tokenizer.txt: its
// name, digest and end-of-document id. It is found beside the shards that it made. Rank 0.   Errors: IoError.
void store_run_tokenizer(const std::vector<TokenDataset>& data, const std::string& run_dir);

// The tokenizer of the run that a checkpoint belongs to; bytes for runs that have stored none.
// Errors: DataError if the run's tokenizer.json is missing or is another than its data was made with.
std::unique_ptr<Tokenizer> run_tokenizer(const std::string& checkpoint);

}  // namespace braid
