#pragma once

#include <array>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "data/packing.h"
#include "data/token_shard.h"

namespace braid {

enum class Split { kTrain, kValidation };

// Which documents of a source are held out: those whose hash falls into the fraction, or a list, and perhaps some
// tokens at the end of one more.
struct HeldOut {
  double fraction = 0;  // of the hashes, where `by_hash`
  bool by_hash = true;
  std::vector<int64_t> documents;  // rising, where not
  int64_t cut_document = -1, cut_tokens = 0;
  bool holds(int64_t document) const;
  // held[i] = holds(first + i), many at once.
  void hold(int64_t first, std::span<uint8_t> held) const;
};

// The shards of a source and how its documents become rows, for any number of documents. They stay in the shards: they
// are packed in blocks of consecutive documents, at least 256 rows or 4096 documents each, and what is kept of a block
// is how many rows it has. A row is found by packing its block again, the last few blocks are kept.
// The counts of large sources are stored beside the first shard, so that later starts need not read the documents.
class TokenSource {
 public:
  // Opens every shard once. All shards must share tokenizer digest, vocabulary and end-of-document id.
  // Errors: DataError (file, reason), also for documents whose offsets are damaged.
  TokenSource(std::string name, const std::vector<std::string>& shard_paths, int64_t row_tokens,
              double validation_fraction);

  const std::string& name() const { return name_; }
  const std::vector<TokenShard>& shards() const { return shards_; }
  int64_t row_tokens() const { return row_tokens_; }
  int64_t num_documents() const { return first_document_.back(); }
  int64_t num_rows(Split split) const { return rows(split).back(); }
  int64_t num_tokens(Split split) const { return num_tokens_[index_of(split)]; }  // valid ones
  // SHA-256 over the lengths of all documents and how they are cut into rows.
  const std::string& documents_digest() const { return documents_digest_; }
  bool was_stored() const { return was_stored_; }  // the counts were, by an earlier start

  // The pieces of a row, in order. Any number of threads may ask.   Errors: DataError.
  std::vector<Piece> row(Split split, int64_t index) const;

 private:
  static size_t index_of(Split split) { return split == Split::kTrain ? 0 : 1; }
  const std::vector<int64_t>& rows(Split split) const { return rows_before_[index_of(split)]; }
  int64_t num_blocks() const { return (num_documents() + block_documents_ - 1) / block_documents_; }

  // Buffers for the documents of a block.
  struct Scratch {
    std::vector<int64_t> offsets, lengths;
    std::vector<uint8_t> held;
  };
  // document(shard, document of it, begin, end, document of the source) for the documents of a block. scratch.held says
  // of each whether it is held out.
  template <class F>
  void for_each_document(int64_t block, Scratch& scratch, F&& document) const;
  // part(split, begin, end, ending) for what each split has of a document.
  template <class F>
  void for_each_part(int64_t document, int64_t begin, int64_t end, bool is_held, F&& part) const;
  std::shared_ptr<const BlockRows> packed(Split split, int64_t block) const;

  void count_rows();
  HeldOut hold_out_by_list() const;
  std::string index_path() const;
  std::string index_key() const;
  bool read_index();
  void write_index() const;

  std::string name_;
  int64_t row_tokens_;
  std::vector<TokenShard> shards_;
  std::vector<int64_t> first_document_;  // of every shard; the last is the number of all
  int64_t block_documents_ = 0;
  HeldOut held_;
  std::array<std::vector<int64_t>, 2> rows_before_;  // every block, by split; the last is the number of all
  std::array<int64_t, 2> num_tokens_ = {};
  std::string documents_digest_;
  bool was_stored_ = false;

  struct Packed {
    Split split;
    int64_t block;
    std::shared_ptr<const BlockRows> rows;
  };
  static constexpr size_t kPackedBlocks = 8;
  mutable std::mutex mutex_;
  mutable std::list<Packed> packed_;  // the last one used first
};

}  // namespace braid
