#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/core/raw_file.h"

namespace braid {

// A token shard is an HDF5 file with
//   tokens            1-D, unsigned 16 or 32 bit little endian, contiguous
//   document_offsets  1-D, unsigned 64 bit, (documents + 1): document d is tokens [offsets[d], offsets[d + 1])
//   attributes of /   format "braid-tokens", format_version 1, vocab_size, end_of_document, tokenizer,
//                     tokenizer_digest, num_tokens, num_documents; optional: source_digest
// Each document ends with the end-of-document id. Strings are of fixed length, numbers are integers, all are scalar.
struct ShardInfo {
  std::string path;
  int64_t vocab_size = 0, end_of_document = 0, num_tokens = 0, num_documents = 0;
  int token_bytes = 0;  // 2 or 4 as stored
  std::string tokenizer, tokenizer_digest;
  std::string source_digest;  // of the text it was made from; empty if unknown
};

// Writes to `path`.part and renames it when closed whole, so a killed writer leaves no shard behind. Without close()
// nothing is left. Memory does not grow with the tokens.
// Errors: IoError naming the path; DataError for an id outside the vocabulary.
class TokenShardWriter {
 public:
  TokenShardWriter(std::string path, int64_t vocab_size, int64_t end_of_document, std::string tokenizer,
                   std::string tokenizer_digest);
  ~TokenShardWriter();
  TokenShardWriter(const TokenShardWriter&) = delete;
  TokenShardWriter& operator=(const TokenShardWriter&) = delete;
  void add_document(std::span<const uint32_t> tokens);  // the end-of-document id is appended
  // The same in pieces, for documents that are too large to be held whole.
  void append(std::span<const uint32_t> tokens);
  void end_document();
  void set_source_digest(std::string digest);  // stored as an attribute; see tokenize_files
  void close();

 private:
  struct File;
  std::unique_ptr<File> file_;
};

// Does opening a shard check all its document offsets, or only how many there are?
enum class CheckOffsets { kNow, kWhenRead };

// Reads a shard that it does not trust, without libhdf5: only the layout above is understood, every address and count
// is checked against the file before it is followed. Opening checks everything but the token values: signature,
// superblock, declared end of file, checksums, names, types, ranks, storage, offsets, counts; filters, links and
// external or virtual storage are refused. Then tokens and offsets are plain bytes at known places, which stay in the
// file; any number of threads may read at a time, and any number of shards be there (see PooledFile). Errors: DataError
// with file, dataset or attribute, expected and found.
class TokenShard {
 public:
  explicit TokenShard(const std::string& path, CheckOffsets check = CheckOffsets::kNow);
  ~TokenShard();
  TokenShard(TokenShard&&) noexcept;
  TokenShard& operator=(TokenShard&&) noexcept;

  const ShardInfo& info() const;
  const FileStamp& stamp() const;
  std::vector<int64_t> document_offsets() const;  // all of them
  // offsets[first .. last], last - first + 1 values, checked: ascending, inside the tokens.
  void read_offsets(int64_t first, int64_t last, int64_t* out) const;
  int64_t tokens_position() const;  // byte of the file where the first token is
  // Tokens [begin, end). Throws DataError with file, position and id for an id outside the vocabulary.
  void read(int64_t begin, int64_t end, uint32_t* out) const;

 private:
  struct File;
  std::unique_ptr<File> file_;
};

}  // namespace braid
