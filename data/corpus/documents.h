#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "data/corpus/dataset_manifest.h"
#include "data/token_shard.h"
#include "kernels/core/error.h"

namespace braid {

// Calls piece(ids, is_end) for the tokens of documents [offsets[d], offsets[d + 1]), from front to back, in blocks that
// read(begin, end, ids) gives. The piece that ends a document is empty only if the document is.
template <class Read, class Piece>
void for_document_pieces(std::span<const int64_t> offsets, Read&& read, Piece&& piece) {
  constexpr int64_t kBlockTokens = int64_t{1} << 16;
  std::vector<uint32_t> ids;
  size_t document = 0;
  for (int64_t begin = offsets.front(); document + 1 < offsets.size();) {
    const int64_t end = std::min(begin + kBlockTokens, offsets.back());
    read(begin, end, ids);
    const std::span<const uint32_t> block = ids;
    int64_t at = begin;
    for (; document + 1 < offsets.size() && offsets[document + 1] <= end; ++document) {
      const int64_t next = offsets[document + 1];
      piece(block.subspan(at - begin, next - at), true);
      at = next;
    }
    if (at < end) piece(block.subspan(at - begin, end - at), false);
    begin = end;
  }
}

// The same for documents [first, last) of a shard, with their end-of-document ids.
template <class Piece>
void for_document_pieces(const TokenShard& shard, int64_t first, int64_t last, Piece&& piece) {
  constexpr int64_t kBlockDocuments = 8192;
  std::vector<int64_t> offsets;
  for (; first < last; first += kBlockDocuments) {
    const int64_t behind = std::min(first + kBlockDocuments, last);
    offsets.resize(behind - first + 1);
    shard.read_offsets(first, behind, offsets.data());
    const auto read = [&](int64_t begin, int64_t end, std::vector<uint32_t>& ids) {
      ids.resize(end - begin);
      shard.read(begin, end, ids.data());
    };
    for_document_pieces(offsets, read, piece);
  }
}

// A dataset that was named: its folder, or shards without a dataset.json (a file, or a folder of *.h5).
struct NamedDataset {
  std::string name;
  std::vector<std::string> shards;  // paths
  DatasetManifest manifest;         // made up where there is none
};
// Reads every byte: what is damaged is not copied.   Errors: DataError.
NamedDataset open_whole_dataset(const std::string& path);

// piece(ids, is_end) for all its documents, without their end-of-document ids.
// Errors: DataError, also for a document that does not end with that id.
template <class Piece>
void for_document_pieces(const NamedDataset& dataset, Piece&& piece) {
  for (const std::string& path : dataset.shards) {
    const TokenShard shard(path, CheckOffsets::kWhenRead);
    int64_t document = 0;
    for_document_pieces(shard, 0, shard.info().num_documents, [&](std::span<const uint32_t> ids, bool is_end) {
      if (is_end && !ids.empty()) {
        check<DataError>(ids.back() == shard.info().end_of_document, path, ": document ", document, " ends with id ",
                         ids.back(), ", expected the end-of-document id ", shard.info().end_of_document);
        ids = ids.first(ids.size() - 1);
      }
      document += is_end;
      piece(ids, is_end);
    });
  }
}

}  // namespace braid
