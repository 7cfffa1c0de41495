#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "data/token_shard.h"
#include "data/token_source.h"
#include "kernels/core/batch.h"

namespace braid {

// Rows of `row_tokens` tokens packed from the documents of one source and one split. Which documents are held out, how
// long ones are cut and which pieces share a row are pure functions of the shards, never of seed, rank or batch size.
// - A document belongs to the validation split if a hash of its index (over all shards, in order) says so. If that
//   misses the fraction of the tokens by more than half, as with few or very unequal documents, the documents are taken
//   in the order of their hashes as long as they fit; if that is still too little, the end of the last document left
//   for training makes up for the rest. Fewer than four tokens are not split.
// - A document longer than a row is cut into whole rows and a remainder; the last token of a cut piece keeps its
//   target, the first token of the next piece. Pieces are packed as packing.h says;
//   what stays free in a row is padding: one document of its own at the end of the row, not valid, without targets.
class TokenDataset {
 public:
  // Errors: DataError (file, reason); no rows at all is an error in the training split, size() == 0 in validation.
  TokenDataset(std::shared_ptr<const TokenSource> source, Split split);
  TokenDataset(std::string name, const std::vector<std::string>& shard_paths, int64_t row_tokens, Split split,
               double validation_fraction)
      : TokenDataset(std::make_shared<TokenSource>(std::move(name), shard_paths, row_tokens, validation_fraction),
                     split) {}

  const TokenSource& source() const { return *source_; }
  const std::string& name() const { return source_->name(); }
  int64_t size() const { return source_->num_rows(split_); }  // rows
  const std::vector<TokenShard>& shards() const { return source_->shards(); }
  int64_t num_tokens() const { return source_->num_tokens(split_); }  // valid tokens over all rows

  // What row `index` is made of, in order.
  struct RowPiece {
    int64_t shard, document;  // index into shards(), and of the document in it
    int64_t offset, tokens;   // of the document
  };
  std::vector<RowPiece> pieces_of_row(int64_t index) const;

  // Appends row `index` to the batch (its num_rows grows by one). Any number of threads may do so at a time.
  // Errors: DataError, the batch is then unchanged.
  void append_row(int64_t index, Batch& batch) const;

 private:
  std::shared_ptr<const TokenSource> source_;
  Split split_;
};

// Each is text as far as its first MiB shows.   Errors: DataError naming a file that is none, as tokenize_files.
void check_texts_begin(const std::vector<std::string>& files);

// Tokenizes text files into one shard of bytes, a document per file. Returns what was written. An existing shard made
// from files with the same contents in the same order is kept. Memory does not grow with the files.
// Errors: DataError naming a file that is no text (NUL, UTF-16, gzip) or changes meanwhile; IoError.
ShardInfo tokenize_files(const std::vector<std::string>& files, const std::string& shard_path);

}  // namespace braid
