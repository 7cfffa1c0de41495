#include "data/token_dataset.h"

#include <algorithm>
#include <cassert>
#include <filesystem>
#include <iterator>
#include <utility>

#include "data/corpus/text_input.h"
#include "data/tokenizer/tokenizer.h"
#include "kernels/core/error.h"
#include "kernels/core/raw_file.h"
#include "kernels/core/sha256.h"

namespace braid {
namespace {

namespace fs = std::filesystem;

}  // namespace

TokenDataset::TokenDataset(std::shared_ptr<const TokenSource> source, Split split)
    : source_(std::move(source)), split_(split) {
  check<DataError>(split == Split::kValidation || size() > 0, name(), ": nothing to train on in ",
                   source_->num_documents(), " documents of ", shards().size(), " shards, from ",
                   shards().front().info().path);
}

std::vector<TokenDataset::RowPiece> TokenDataset::pieces_of_row(int64_t index) const {
  std::vector<RowPiece> result;
  for (const Piece& piece : source_->row(split_, index)) {
    int64_t offsets[2];
    shards()[piece.shard].read_offsets(piece.document, piece.document + 1, offsets);
    result.push_back({piece.shard, piece.document, piece.begin - offsets[0], piece.tokens});
  }
  return result;
}

void TokenDataset::append_row(int64_t index, Batch& batch) const {
  assert(0 <= index && index < size());
  const int64_t row_tokens = source_->row_tokens();
  assert(batch.num_rows == 0 || batch.row_tokens == row_tokens);
  const int64_t end_of_document = shards().front().info().end_of_document;
  // Padding is what the pieces leave as it is here.
  std::vector<int64_t> tokens(row_tokens, end_of_document), targets(row_tokens, -1), ends;
  std::vector<uint8_t> valid(row_tokens, 0);
  std::vector<uint32_t> ids(row_tokens + 1);
  int64_t at = 0;
  for (const Piece& piece : source_->row(split_, index)) {
    const TokenShard& shard = shards()[piece.shard];
    const int64_t num_ids = piece.tokens + (piece.ending == Ending::kNextPiece);
    shard.read(piece.begin, piece.begin + num_ids, ids.data());
    check<DataError>(piece.ending != Ending::kDocument || ids[piece.tokens - 1] == end_of_document, shard.info().path,
                     ": tokens[", piece.begin + piece.tokens - 1, "] is ", ids[piece.tokens - 1],
                     ", expected the end-of-document id ", end_of_document, " where document_offsets ends a document");
    std::copy_n(ids.begin(), piece.tokens, tokens.begin() + at);
    std::copy_n(ids.begin() + 1, num_ids - 1, targets.begin() + at);
    std::fill_n(valid.begin() + at, piece.tokens, 1);
    at += piece.tokens;
    ends.push_back(at);
  }
  if (at < row_tokens) ends.push_back(row_tokens);

  Segments& s = batch.segments;
  if (s.offsets.empty()) s.offsets.push_back(0);
  for (int64_t end : ends) s.offsets.push_back(batch.num_rows * row_tokens + end);
  s.valid.insert(s.valid.end(), valid.begin(), valid.end());
  batch.tokens.insert(batch.tokens.end(), tokens.begin(), tokens.end());
  batch.targets.insert(batch.targets.end(), targets.begin(), targets.end());
  batch.row_tokens = s.row_tokens = row_tokens;
  s.num_rows = ++batch.num_rows;
}

namespace {

// block(bytes) for one piece of the file after the other, until it returns false or the file ends.
template <class Block>
void read_blocks(const std::string& path, Block&& block) {
  const RawFile file = RawFile::open(path);
  std::string buffer(std::min(file.size(), int64_t{1} << 20), '\0');
  for (int64_t at = 0; at < file.size(); at += std::ssize(buffer)) {
    const int64_t bytes = std::min(std::ssize(buffer), file.size() - at);
    file.read(buffer.data(), bytes, at);
    if (!block(std::string_view(buffer.data(), bytes))) return;
  }
}

void check_text(const std::string& path, std::string_view bytes) {
  const std::string why = why_not_text(bytes);
  check<DataError>(why.empty(), path, ": ", why, "; take it out of what is named as text");
}

}  // namespace

void check_texts_begin(const std::vector<std::string>& files) {
  for (const std::string& path : files)
    read_blocks(path, [&](std::string_view bytes) {
      check_text(path, bytes);
      return false;
    });
}

ShardInfo tokenize_files(const std::vector<std::string>& files, const std::string& shard_path) {
  const ByteTokenizer tokenizer;
  // The digest is over the contents alone, so that a moved or touched folder is not tokenized again.
  Sha256 contents;
  std::vector<std::pair<std::string, std::string>> texts;  // path, digest
  for (const std::string& path : files) {
    Sha256 digest;
    bool is_first = true;
    read_blocks(path, [&](std::string_view bytes) {
      digest.update(bytes.data(), bytes.size());
      if (is_first || bytes.find('\0') != bytes.npos) check_text(path, bytes);
      is_first = false;
      return true;
    });
    texts.emplace_back(path, digest.hex());
    contents.update(texts.back().second.data(), texts.back().second.size());
  }
  check<DataError>(!texts.empty(), shard_path, ": there are no files to make it from");
  const std::string source_digest = contents.hex();
  if (fs::exists(shard_path)) {
    try {
      ShardInfo info = TokenShard(shard_path).info();
      if (info.source_digest == source_digest && info.tokenizer_digest == tokenizer.digest()) return info;
    } catch (const DataError&) {
      // Not a whole shard: it is replaced.
    }
  }

  TokenShardWriter writer(shard_path, tokenizer.vocab_size(), tokenizer.end_of_document(), tokenizer.name(),
                          tokenizer.digest());
  const auto encoder = tokenizer.encoder();
  std::vector<uint32_t> tokens;
  for (const auto& [path, expected] : texts) {
    Sha256 digest;
    read_blocks(path, [&](std::string_view bytes) {
      digest.update(bytes.data(), bytes.size());
      tokens.clear();
      encoder->encode(bytes, tokens);
      writer.append(tokens);
      return true;
    });
    check<DataError>(digest.hex() == expected, path, ": changed while it was tokenized");
    writer.end_document();
  }
  writer.set_source_digest(source_digest);
  writer.close();
  return TokenShard(shard_path).info();
}

}  // namespace braid
