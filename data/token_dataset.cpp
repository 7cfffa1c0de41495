#include "data/token_dataset.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <numeric>
#include <utility>

#include "data/corpus/text_input.h"
#include "data/tokenizer/tokenizer.h"
#include "kernels/core/error.h"
#include "kernels/core/philox.h"
#include "kernels/core/sha256.h"

namespace braid {
namespace {

namespace fs = std::filesystem;

constexpr size_t kOpenRows = 64;   // the window of the packing
constexpr int64_t kMinTokens = 2;  // of a document or split that can predict anything

uint64_t split_hash(int64_t document) {
  constexpr uint64_t kSplitKey = 0x76616c6964617465;
  const auto bits = philox(kSplitKey, 0, static_cast<uint64_t>(document));
  return uint64_t{bits[1]} << 32 | bits[0];
}

// Whole documents, and some tokens at the end of one more.
struct HeldOut {
  std::vector<bool> documents;
  int64_t cut_document = -1, cut_tokens = 0;
};

HeldOut hold_out(const std::vector<int64_t>& lengths, double fraction) {
  const auto num_documents = static_cast<int64_t>(lengths.size());
  HeldOut held{std::vector<bool>(lengths.size(), false)};
  auto counts = [&](int64_t d) { return lengths[d] >= kMinTokens; };
  int64_t total = 0;
  for (int64_t d = 0; d < num_documents; ++d)
    if (counts(d)) total += lengths[d];
  if (fraction == 0 || total < 2 * kMinTokens) return held;
  const int64_t target = std::clamp(std::llround(fraction * static_cast<double>(total)),
                                    static_cast<long long>(kMinTokens), static_cast<long long>(total - kMinTokens));
  auto is_near = [&](int64_t tokens) { return std::abs(tokens - target) <= std::min(target, total - target) / 2; };

  int64_t tokens = 0;
  for (int64_t d = 0; d < num_documents; ++d) {
    held.documents[d] = static_cast<double>(split_hash(d) >> 11) * 0x1p-53 < fraction;
    if (held.documents[d] && counts(d)) tokens += lengths[d];
  }
  if (is_near(tokens)) return held;

  std::vector<std::pair<uint64_t, int64_t>> order;
  for (int64_t d = 0; d < num_documents; ++d)
    if (counts(d)) order.emplace_back(split_hash(d), d);
  std::sort(order.begin(), order.end());
  held.documents.assign(lengths.size(), false);
  tokens = 0;
  for (const auto& [hash, d] : order) {
    if (tokens + lengths[d] > target) continue;
    held.documents[d] = true;
    tokens += lengths[d];
  }
  if (is_near(tokens)) return held;

  // Each document left is longer than what is missing: it did not fit.
  held.cut_tokens = target - tokens;
  for (int64_t d = 0; d < num_documents; ++d)
    if (counts(d) && !held.documents[d]) held.cut_document = d;
  return held;
}

}  // namespace

TokenDataset::TokenDataset(std::string name, const std::vector<std::string>& shard_paths, int64_t row_tokens,
                           Split split, double validation_fraction)
    : name_(std::move(name)), row_tokens_(row_tokens) {
  check<ConfigError>(0 < row_tokens && row_tokens <= INT32_MAX, name_, ": rows of ", row_tokens, " tokens");
  check<ConfigError>(0 <= validation_fraction && validation_fraction < 1, name_, ": validation fraction ",
                     validation_fraction, ", expected [0, 1)");
  check<DataError>(!shard_paths.empty(), name_, ": no token shards are given");
  std::vector<int64_t> lengths;
  for (const std::string& path : shard_paths) {
    shards_.emplace_back(path);
    const ShardInfo &first = shards_.front().info(), &info = shards_.back().info();
    auto check_same = [&](const char* what, const auto& found, const auto& expected) {
      check<DataError>(found == expected, name_, ": ", path, " has ", what, " ", found, ", but ", first.path, " has ",
                       expected);
    };
    check_same("tokenizer digest", info.tokenizer_digest, first.tokenizer_digest);
    check_same("a vocabulary of", info.vocab_size, first.vocab_size);
    check_same("end-of-document id", info.end_of_document, first.end_of_document);
    const std::vector<int64_t>& offsets = shards_.back().document_offsets();
    for (size_t d = 0; d + 1 < offsets.size(); ++d) lengths.push_back(offsets[d + 1] - offsets[d]);
  }
  const HeldOut held = hold_out(lengths, validation_fraction);

  std::vector<Piece> pieces;
  int64_t document = 0;
  for (size_t shard = 0; shard < shards_.size(); ++shard) {
    const std::vector<int64_t>& offsets = shards_[shard].document_offsets();
    for (size_t d = 0; d + 1 < offsets.size(); ++d, ++document) {
      int64_t begin = offsets[d], end = offsets[d + 1];
      Ending ending = Ending::kDocument;
      bool is_ours = held.documents[document] == (split == Split::kValidation);
      if (document == held.cut_document) {
        const int64_t cut = end - held.cut_tokens;
        is_ours = true;
        if (split == Split::kValidation) begin = cut;
        else end = cut, ending = Ending::kHeldOut;
      }
      while (is_ours && begin < end) {
        const int64_t tokens = std::min(end - begin, row_tokens);
        const Ending piece_ending = begin + tokens < end ? Ending::kNextPiece : ending;
        if (tokens >= kMinTokens || piece_ending == Ending::kNextPiece)
          pieces.push_back({begin, static_cast<int32_t>(shard), static_cast<int32_t>(tokens), piece_ending});
        begin += tokens;
      }
    }
  }
  pack(pieces);
  check<DataError>(split == Split::kValidation || size() > 0, name_, ": nothing to train on in ", document,
                   " documents of ", shard_paths.size(), " shards, from ", shard_paths.front());
}

void TokenDataset::pack(const std::vector<Piece>& pieces) {
  struct OpenRow {
    int64_t row, free;
  };
  std::vector<OpenRow> open;  // in the order in which they were opened
  std::vector<int64_t> row_of(pieces.size());
  int64_t num_rows = 0;
  for (size_t i = 0; i < pieces.size(); ++i) {
    const int64_t tokens = pieces[i].tokens;
    num_tokens_ += tokens;
    auto row = std::find_if(open.begin(), open.end(), [&](const OpenRow& r) { return r.free >= tokens; });
    if (row == open.end()) {
      // The fullest row leaves the window: it is the least likely to take another piece.
      if (open.size() == kOpenRows)
        open.erase(std::min_element(open.begin(), open.end(), [](auto& a, auto& b) { return a.free < b.free; }));
      row = open.insert(open.end(), {num_rows++, row_tokens_});
    }
    row_of[i] = row->row;
    row->free -= tokens;
  }

  row_begin_.assign(num_rows + 1, 0);
  for (int64_t row : row_of) ++row_begin_[row + 1];
  std::partial_sum(row_begin_.begin(), row_begin_.end(), row_begin_.begin());
  pieces_.resize(pieces.size());
  std::vector<int64_t> next(row_begin_.begin(), row_begin_.end() - 1);
  for (size_t i = 0; i < pieces.size(); ++i) pieces_[next[row_of[i]]++] = pieces[i];
}

void TokenDataset::append_row(int64_t index, Batch& batch) const {
  assert(0 <= index && index < size());
  assert(batch.num_rows == 0 || batch.row_tokens == row_tokens_);
  const int64_t end_of_document = shards_.front().info().end_of_document;
  // Padding is what the pieces leave as it is here.
  std::vector<int64_t> tokens(row_tokens_, end_of_document), targets(row_tokens_, -1), ends;
  std::vector<uint8_t> valid(row_tokens_, 0);
  std::vector<uint32_t> ids(row_tokens_ + 1);
  int64_t at = 0;
  for (int64_t p = row_begin_[index]; p < row_begin_[index + 1]; ++p) {
    const Piece& piece = pieces_[p];
    const TokenShard& shard = shards_[piece.shard];
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
  if (at < row_tokens_) ends.push_back(row_tokens_);

  Segments& s = batch.segments;
  if (s.offsets.empty()) s.offsets.push_back(0);
  for (int64_t end : ends) s.offsets.push_back(batch.num_rows * row_tokens_ + end);
  s.valid.insert(s.valid.end(), valid.begin(), valid.end());
  batch.tokens.insert(batch.tokens.end(), tokens.begin(), tokens.end());
  batch.targets.insert(batch.targets.end(), targets.begin(), targets.end());
  batch.row_tokens = s.row_tokens = row_tokens_;
  s.num_rows = ++batch.num_rows;
}

namespace {

// block(bytes) for one piece of the file after the other, until it returns false or the file ends.
template <class Block>
void read_blocks(const std::string& path, Block&& block) {
  std::ifstream file(path, std::ios::binary);
  check<DataError>(file.is_open(), path, ": cannot be opened");
  std::string buffer(1 << 20, '\0');
  while (file) {
    file.read(buffer.data(), static_cast<std::streamsize>(buffer.size()));
    check<DataError>(!file.bad(), path, ": cannot be read");
    if (!block(std::string_view(buffer.data(), file.gcount()))) return;
  }
}

}  // namespace

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
      const std::string why = is_first || bytes.find('\0') != bytes.npos ? why_not_text(bytes) : "";
      check<DataError>(why.empty(), path, ": ", why, "; take it out of what is named as text");
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
