#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "data/corpus/dataset_manifest.h"
#include "data/tokenizer/tokenizer.h"

namespace braid {

struct CorpusOptions {
  std::vector<std::string> inputs;          // list_inputs
  std::string out;                          // folder
  std::string text_key = "text";            // of JSON lines
  int64_t shard_tokens = int64_t{1} << 28;  // a shard ends with the document that reaches them
  int jobs = 1;                             // threads that tokenize
};

struct CorpusProgress {
  int64_t bytes = 0, all_bytes = 0;  // of the inputs on the disk, done and in all; all_bytes is 0 for standard input
  int64_t documents = 0, tokens = 0;
};

struct CorpusReport {
  DatasetManifest manifest;
  std::vector<std::string> complaints;  // the first records that could not be read, with file, line and reason
  int64_t documents_before = 0;         // of an earlier, interrupted start
  bool was_complete = false;            // nothing was left to do
};

// Tokenizes documents into <out>/shard-00000.h5 … and, once all are done, <out>/dataset.json. The same inputs and
// options give the same bytes for any number of jobs. Interrupted, it goes on behind the last finished shard when
// started again with the same inputs (paths, sizes, times) and options; standard input starts anew. A record without a
// text, or a file that is no text, is counted and described, never a document. `progress` is called now and then.
// Memory: about 64 MiB of text in flight, or the largest document, and its tokens.
// Errors: DataError, IoError; also if <out> holds another dataset, or part of one.
CorpusReport tokenize_corpus(const Tokenizer& tokenizer, const CorpusOptions& options,
                             const std::function<void(const CorpusProgress&)>& progress);

}  // namespace braid
