#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/core/batch.h"
#include "data/token_shard.h"

namespace braid {

enum class Split { kTrain, kValidation };

// Rows of `row_tokens` tokens packed from the documents of one source and one split. Which documents are held out, how
// long ones are cut and which pieces share a row are pure functions of the shards, never of seed, rank or batch size.
// - A document belongs to the validation split if a hash of its index (over all shards, in order) says so. If that
//   misses the fraction of the tokens by more than half, as with few or very unequal documents, the documents are taken
//   in the order of their hashes as long as they fit; if that is still too little, the end of the last document left
//   for training makes up for the rest. Fewer than four tokens are not split.
// - A document longer than a row is cut into whole rows and a remainder; the last token of a cut piece keeps its
//   target, the first token of the next piece. Pieces are packed whole, first fit over a window, in document order;
//   what stays free in a row is padding: one document of its own at the end of the row, not valid, without targets.
// - A piece that predicts nothing (a lone end-of-document id) is left out.
class TokenDataset {
 public:
  // Opens every shard now. All shards must share tokenizer digest, vocabulary and end-of-document id.
  // Errors: DataError (file, reason); no rows at all is an error in the training split, size() == 0 in validation.
  TokenDataset(std::string name, const std::vector<std::string>& shard_paths, int64_t row_tokens, Split split,
               double validation_fraction);

  const std::string& name() const { return name_; }
  int64_t size() const { return static_cast<int64_t>(row_begin_.size()) - 1; }  // rows
  const std::vector<TokenShard>& shards() const { return shards_; }
  int64_t num_tokens() const { return num_tokens_; }  // valid tokens over all rows

  // Appends row `index` to the batch (its num_rows grows by one). Any number of threads may do so at a time.
  // Errors: DataError, the batch is then unchanged.
  void append_row(int64_t index, Batch& batch) const;

 private:
  enum class Ending : int8_t {
    kDocument,   // ends with the end-of-document id
    kNextPiece,  // the document goes on behind it, so its last token has a target
    kHeldOut,    // the document goes on in the other split
  };
  struct Piece {
    int64_t begin;  // position of its first token in the shard
    int32_t shard;
    int32_t tokens;
    Ending ending;
  };
  void pack(const std::vector<Piece>& pieces);

  std::string name_;
  std::vector<TokenShard> shards_;
  int64_t row_tokens_, num_tokens_ = 0;
  std::vector<Piece> pieces_;       // in row order
  std::vector<int64_t> row_begin_;  // (size + 1) into pieces_
};

// Tokenizes text files into one shard of bytes, a document per file. Returns what was written. An existing shard made from files
// with the same contents in the same order is kept. Memory does not grow with the files.
// Errors: DataError naming a file that is no text (NUL, UTF-16, gzip) or changes meanwhile; IoError.
ShardInfo tokenize_files(const std::vector<std::string>& files, const std::string& shard_path);

}  // namespace braid
