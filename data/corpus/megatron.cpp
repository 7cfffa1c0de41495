#include "data/corpus/megatron.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <functional>
#include <utility>

#include "data/corpus/documents.h"
#include "kernels/core/durable_file.h"
#include "kernels/core/error.h"

namespace braid {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kShortIds = 65500;  // Megatron's own bound
constexpr uint8_t kInt32 = 4, kUint16 = 8;

// Values of one type to a file, through a buffer.
template <class Value>
class Column {
 public:
  explicit Column(DurableFile& file) : file_(file) {}
  void add(Value value) {
    values_.push_back(value);
    if (values_.size() == size_t{1} << 16) flush();
  }
  void flush() {
    file_.write(values_.data(), static_cast<int64_t>(values_.size() * sizeof(Value)));
    values_.clear();
  }

 private:
  DurableFile& file_;
  std::vector<Value> values_;
};

template <class Value>
void write_ids(DurableFile& file, const NamedDataset& dataset) {
  Column<Value> column(file);
  for_document_pieces(dataset, [&](std::span<const uint32_t> ids, bool is_end) {
    for (const uint32_t id : ids) column.add(static_cast<Value>(id));
    if (is_end) column.add(static_cast<Value>(dataset.manifest.end_of_document));
  });
  column.flush();
}

// length(tokens) of every document, its end-of-document id counted in.
void for_lengths(const NamedDataset& dataset, const std::function<void(int64_t)>& length) {
  constexpr int64_t kAtOnce = 8192;
  std::vector<int64_t> offsets(kAtOnce + 1);
  for (const std::string& path : dataset.shards) {
    const TokenShard shard(path, CheckOffsets::kWhenRead);
    const int64_t documents = shard.info().num_documents;
    for (int64_t first = 0; first < documents; first += kAtOnce) {
      const int64_t last = std::min(first + kAtOnce, documents);
      shard.read_offsets(first, last, offsets.data());
      for (int64_t d = 0; d < last - first; ++d) length(std::max<int64_t>(offsets[d + 1] - offsets[d], 1));
    }
  }
}

}  // namespace

DatasetManifest write_megatron(const std::string& from, const std::string& to) {
  const std::string bin_path = fs::path(to).replace_extension(".bin"),
                    index_path = fs::path(to).replace_extension(".idx");
  for (const std::string& path : {bin_path, index_path}) check<IoError>(!fs::exists(path), path, ": is there already");
  const NamedDataset dataset = open_whole_dataset(from);
  const DatasetManifest& m = dataset.manifest;
  check<DataError>(m.vocab_size - 1 <= INT32_MAX, from, ": a vocabulary of ", m.vocab_size,
                   " ids does not fit Megatron's 32 bits");
  const bool is_short = m.vocab_size < kShortIds;
  const int64_t token_bytes = is_short ? 2 : 4;

  int64_t documents = 0, tokens = 0;
  for_lengths(dataset, [&](int64_t length) {
    check<DataError>(length <= INT32_MAX, from, ": document ", documents, " has ", length,
                     " tokens, more than Megatron's 32 bits hold");
    ++documents;
    tokens += length;
  });
  DurableFile bin(bin_path, token_bytes * tokens);
  is_short ? write_ids<uint16_t>(bin, dataset) : write_ids<int32_t>(bin, dataset);

  std::string header("MMIDIDX\0\0", 9);
  const auto add = [&](auto value) { header.append(reinterpret_cast<const char*>(&value), sizeof value); };
  add(uint64_t{1});  // version
  add(is_short ? kUint16 : kInt32);
  add(documents);      // sequences
  add(documents + 1);  // marks of documents
  DurableFile index(index_path, static_cast<int64_t>(header.size()) + 12 * documents + 8 * (documents + 1));
  index.write(header.data(), static_cast<int64_t>(header.size()));
  Column<int32_t> lengths(index);
  for_lengths(dataset, [&](int64_t length) { lengths.add(static_cast<int32_t>(length)); });
  lengths.flush();
  Column<int64_t> pointers(index), marks(index);
  int64_t at = 0;
  for_lengths(dataset, [&](int64_t length) { pointers.add(std::exchange(at, at + length * token_bytes)); });
  pointers.flush();
  for (int64_t d = 0; d <= documents; ++d) marks.add(d);
  marks.flush();
  bin.finish();
  index.finish();
  return m;
}

}  // namespace braid
