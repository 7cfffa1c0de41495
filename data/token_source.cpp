#include "data/token_source.h"

#include <algorithm>
#include <atomic>
#include <cassert>
#include <cmath>
#include <cstring>
#include <exception>
#include <filesystem>
#include <numeric>
#include <optional>
#include <thread>
#include <utility>

#include "data/row_window.h"
#include "kernels/core/durable_file.h"
#include "kernels/core/error.h"
#include "kernels/core/file_text.h"
#include "kernels/core/philox.h"
#include "kernels/core/sha256.h"

namespace braid {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMinTokens = 2;  // of a document or split that can predict anything
constexpr int64_t kRowsOfBlock = 256, kLeastDocuments = 4096, kMostDocuments = 32768;
constexpr int64_t kBlocksWorthStoring = 64;  // fewer are counted in a moment
constexpr const char* kIndexFormat = "braid packing 1\n";

uint64_t split_hash(int64_t document) {
  constexpr uint64_t kSplitKey = 0x76616c6964617465;
  const auto bits = philox(kSplitKey, 0, static_cast<uint64_t>(document));
  return uint64_t{bits[1]} << 32 | bits[0];
}

// Held-out tokens that a split aims at, and whether a number of them is near it: at most half off.
struct Target {
  int64_t total, tokens;
  static Target of(int64_t total, double fraction) {
    return {total, std::clamp(std::llround(fraction * static_cast<double>(total)), static_cast<long long>(kMinTokens),
                              static_cast<long long>(total - kMinTokens))};
  }
  bool is_near(int64_t held) const { return std::abs(held - tokens) <= std::min(tokens, total - tokens) / 2; }
};

// A power of two, so that it hardly ever changes as shards are added.
int64_t documents_of_block(int64_t documents, int64_t tokens, int64_t row_tokens) {
  int64_t size = kLeastDocuments;
  const double wanted = double(kRowsOfBlock) * double(row_tokens) * double(documents) / std::max(1.0, double(tokens));
  while (size < kMostDocuments && double(size) < wanted) size *= 2;
  return size;
}

}  // namespace

bool HeldOut::holds(int64_t document) const {
  if (by_hash) return fraction > 0 && static_cast<double>(split_hash(document) >> 11) * 0x1p-53 < fraction;
  return std::binary_search(documents.begin(), documents.end(), document);
}

void HeldOut::hold(int64_t first, std::span<uint8_t> held) const {
  const auto count = std::ssize(held);
  if (!by_hash || fraction == 0) {
    std::fill(held.begin(), held.end(), 0);
    for (auto d = std::lower_bound(documents.begin(), documents.end(), first);
         d != documents.end() && *d < first + count; ++d)
      held[*d - first] = 1;
    return;
  }
  // hash * 2^-53 < fraction, in whole numbers
  const auto bound = static_cast<uint64_t>(std::ceil(std::ldexp(fraction, 53)));
  for (int64_t i = 0; i < count; ++i) held[i] = split_hash(first + i) >> 11 < bound;
}

TokenSource::TokenSource(std::string name, const std::vector<std::string>& shard_paths, int64_t row_tokens,
                         double validation_fraction)
    : name_(std::move(name)), row_tokens_(row_tokens), first_document_{0} {
  check<ConfigError>(0 < row_tokens && row_tokens <= INT32_MAX, name_, ": rows of ", row_tokens, " tokens");
  check<ConfigError>(0 <= validation_fraction && validation_fraction < 1, name_, ": validation fraction ",
                     validation_fraction, ", expected [0, 1)");
  check<DataError>(!shard_paths.empty(), name_, ": no token shards are given");
  shards_.reserve(shard_paths.size());
  int64_t tokens = 0;
  for (const std::string& path : shard_paths) {
    shards_.emplace_back(path, CheckOffsets::kWhenRead);
    const ShardInfo &first = shards_.front().info(), &info = shards_.back().info();
    auto check_same = [&](const char* what, const auto& found, const auto& expected) {
      check<DataError>(found == expected, name_, ": ", path, " has ", what, " ", found, ", but ", first.path, " has ",
                       expected);
    };
    check_same("tokenizer digest", info.tokenizer_digest, first.tokenizer_digest);
    check_same("a vocabulary of", info.vocab_size, first.vocab_size);
    check_same("end-of-document id", info.end_of_document, first.end_of_document);
    first_document_.push_back(first_document_.back() + info.num_documents);
    tokens += info.num_tokens;
  }
  block_documents_ = documents_of_block(num_documents(), tokens, row_tokens_);
  held_.fraction = validation_fraction;
  was_stored_ = read_index();
  if (was_stored_) return;
  count_rows();
  if (num_blocks() >= kBlocksWorthStoring) write_index();
}

template <class F>
void TokenSource::for_each_document(int64_t block, Scratch& scratch, F&& document) const {
  int64_t first = block * block_documents_;
  const int64_t last = std::min(first + block_documents_, num_documents());
  scratch.held.resize(last - first);
  held_.hold(first, scratch.held);
  std::vector<int64_t>& offsets = scratch.offsets;
  size_t shard = std::upper_bound(first_document_.begin(), first_document_.end(), first) - first_document_.begin() - 1;
  for (; first < last; ++shard) {
    const int64_t begin = first - first_document_[shard];
    const int64_t end = std::min(last, first_document_[shard + 1]) - first_document_[shard];
    if (begin == end) continue;
    offsets.resize(end - begin + 1);
    shards_[shard].read_offsets(begin, end, offsets.data());
    for (int64_t d = begin; d < end; ++d, ++first)
      document(shard, d, offsets[d - begin], offsets[d - begin + 1], first);
  }
}

template <class F>
void TokenSource::for_each_part(int64_t document, int64_t begin, int64_t end, bool is_held, F&& part) const {
  if (document == held_.cut_document) {
    const int64_t cut = end - held_.cut_tokens;
    part(Split::kTrain, begin, cut, Ending::kHeldOut);
    part(Split::kValidation, cut, end, Ending::kDocument);
  } else {
    part(is_held ? Split::kValidation : Split::kTrain, begin, end, Ending::kDocument);
  }
}

// ---- Counting, block by block on all cores

void TokenSource::count_rows() {
  struct Counts {
    std::array<int64_t, 2> rows = {}, tokens = {};
    int64_t countable = 0, countable_held = 0;  // tokens of documents that can predict anything
    std::array<char, 32> digest = {};
  };
  std::vector<Counts> counts;
  // Blocks of one thread that are packed side by side.
  constexpr int64_t kSideBySide = 4;
  struct Group {
    Scratch scratch;
    std::array<std::array<std::vector<int32_t>, kSideBySide>, 2> pieces;  // shorter than a row, by split and block
  };
  // Fills `pieces` with those of the block, and all else that is counted.
  const auto measure = [&](int64_t block, int64_t place, Group& group) {
    Counts& c = counts[block];
    const int64_t first = block * block_documents_;
    std::vector<int64_t>& lengths = group.scratch.lengths;
    lengths.resize(std::min(block_documents_, num_documents() - first));
    for_each_document(block, group.scratch, [&](size_t, int64_t, int64_t begin, int64_t end, int64_t document) {
      lengths[document - first] = end - begin;
    });
    for (auto& of_split : group.pieces) of_split[place].clear();
    for (int64_t i = 0; i < std::ssize(lengths); ++i) {
      bool is_held = false;
      for_each_part(first + i, 0, lengths[i], group.scratch.held[i],
                    [&](Split held_by, int64_t from, int64_t to, Ending) {
                      const size_t split = index_of(held_by);
                      is_held |= held_by == Split::kValidation;
                      const RowCut cut = RowCut::of(to - from, row_tokens_);
                      c.rows[split] += cut.whole_rows;
                      c.tokens[split] += cut.whole_rows * row_tokens_;
                      if (!cut.has_rest()) return;
                      group.pieces[split][place].push_back(cut.rest);
                      c.tokens[split] += cut.rest;
                    });
      if (lengths[i] < kMinTokens) continue;
      c.countable += lengths[i];
      if (is_held) c.countable_held += lengths[i];
    }
    sha256({reinterpret_cast<const char*>(lengths.data()), lengths.size() * sizeof lengths[0]})
        .copy(c.digest.data(), c.digest.size());
  };
  const auto count = [&](int64_t first_block, Group& group) {
    const int64_t blocks = std::min(kSideBySide, num_blocks() - first_block);
    for (int64_t b = 0; b < blocks; ++b) measure(first_block + b, b, group);
    for (const size_t split : {0, 1}) {
      std::vector<RowWindow> windows(blocks, RowWindow(row_tokens_));
      RowWindow::pack(windows, std::span(group.pieces[split]).first(blocks));
      for (int64_t b = 0; b < blocks; ++b) counts[first_block + b].rows[split] += windows[b].num_rows();
    }
  };

  const auto count_all = [&] {
    counts.assign(num_blocks(), {});
    std::atomic<int64_t> next = 0;
    std::exception_ptr error;
    std::mutex mutex;
    const auto work = [&] {
      try {
        Group group;
        for (int64_t block; (block = next.fetch_add(kSideBySide)) < num_blocks();) count(block, group);
      } catch (...) {
        next = num_blocks();
        std::scoped_lock lock(mutex);
        error = std::current_exception();
      }
    };
    std::vector<std::thread> threads;
    const auto cores = static_cast<int64_t>(std::thread::hardware_concurrency());
    for (int64_t t = 1; t < std::min(cores, num_blocks() / kSideBySide); ++t) threads.emplace_back(work);
    work();
    for (std::thread& thread : threads) thread.join();
    if (error) std::rethrow_exception(error);
  };
  const auto sum = [&](auto&& of) {
    return std::accumulate(counts.begin(), counts.end(), int64_t{0},
                           [&](int64_t total, const Counts& c) { return total + of(c); });
  };

  count_all();
  const int64_t total = sum([](const Counts& c) { return c.countable; });
  const int64_t held = sum([](const Counts& c) { return c.countable_held; });
  if (held_.fraction > 0 && total < 2 * kMinTokens) {  // cannot be split
    held_.by_hash = false;
    count_all();
  } else if (held_.fraction > 0 && !Target::of(total, held_.fraction).is_near(held)) {
    held_ = hold_out_by_list();
    count_all();
  }
  Sha256 digest;
  const std::string how = concat(kIndexFormat, row_tokens_, ' ', block_documents_);
  digest.update(how.data(), how.size() + 1);
  digest.update(&held_.fraction, sizeof held_.fraction);
  for (const Counts& c : counts) digest.update(c.digest.data(), c.digest.size());
  documents_digest_ = digest.hex();
  for (const size_t split : {0, 1}) {
    rows_before_[split] = {0};
    rows_before_[split].reserve(counts.size() + 1);
    for (const Counts& c : counts) rows_before_[split].push_back(rows_before_[split].back() + c.rows[split]);
    num_tokens_[split] = sum([&](const Counts& c) { return c.tokens[split]; });
  }
}

// Documents in the order of their hashes, as long as they fit; if that is still too little, the end of one more.
HeldOut TokenSource::hold_out_by_list() const {
  struct Document {
    uint64_t hash;
    int64_t document, length;
  };
  std::vector<Document> all;
  Scratch scratch;
  int64_t total = 0;
  for (int64_t block = 0; block < num_blocks(); ++block)
    for_each_document(block, scratch, [&](size_t, int64_t, int64_t begin, int64_t end, int64_t document) {
      if (end - begin < kMinTokens) return;
      all.push_back({split_hash(document), document, end - begin});
      total += end - begin;
    });
  const Target target = Target::of(total, held_.fraction);
  std::sort(all.begin(), all.end(),
            [](auto& a, auto& b) { return std::pair(a.hash, a.document) < std::pair(b.hash, b.document); });
  HeldOut held{.fraction = held_.fraction, .by_hash = false};
  int64_t tokens = 0, last_left = -1;
  for (const Document& d : all) {
    if (tokens + d.length > target.tokens) {
      last_left = std::max(last_left, d.document);
    } else {
      held.documents.push_back(d.document);
      tokens += d.length;
    }
  }
  std::sort(held.documents.begin(), held.documents.end());
  if (target.is_near(tokens)) return held;
  // Each document left is longer than what is missing: it did not fit.
  held.cut_document = last_left;
  held.cut_tokens = target.tokens - tokens;
  return held;
}

// ---- Rows

std::shared_ptr<const BlockRows> TokenSource::packed(Split split, int64_t block) const {
  {
    std::scoped_lock lock(mutex_);
    const auto found = std::find_if(packed_.begin(), packed_.end(),
                                    [&](const Packed& p) { return p.split == split && p.block == block; });
    if (found != packed_.end()) {
      packed_.splice(packed_.begin(), packed_, found);
      return found->rows;
    }
  }
  auto rows = std::make_shared<BlockRows>(row_tokens_);
  if (split == Split::kTrain) rows->reserve(block_documents_);
  Scratch scratch;
  const int64_t first = block * block_documents_;
  for_each_document(block, scratch, [&](size_t shard, int64_t d, int64_t begin, int64_t end, int64_t document) {
    for_each_part(document, begin, end, scratch.held[document - first],
                  [&](Split part, int64_t from, int64_t to, Ending ending) {
                    if (part == split) rows->add({from, to - from, d, static_cast<int32_t>(shard), ending});
                  });
  });
  const int64_t found = rows->num_rows();
  const int64_t counted = rows_before_[index_of(split)][block + 1] - rows_before_[index_of(split)][block];
  if (found != counted)
    throw DataError(concat(name_, ": documents ", block * block_documents_, " and on make ", found, " rows, but ",
                           counted, " when they were counted: the shards have changed; remove ", index_path()));
  std::scoped_lock lock(mutex_);
  packed_.push_front({split, block, rows});
  if (packed_.size() > kPackedBlocks) packed_.pop_back();
  return rows;
}

std::vector<Piece> TokenSource::row(Split split, int64_t index) const {
  assert(0 <= index && index < num_rows(split));
  const std::vector<int64_t>& before = rows(split);
  const int64_t block = std::upper_bound(before.begin(), before.end(), index) - before.begin() - 1;
  return packed(split, block)->row(index - before[block]);
}

// ---- The index file: format, key, counts, SHA-256 of all that

namespace {

class Writer {
 public:
  void number(int64_t value) { text_.append(reinterpret_cast<const char*>(&value), sizeof value); }
  void bytes(const std::string& value) {
    number(static_cast<int64_t>(value.size()));
    text_ += value;
  }
  std::string& text() { return text_; }

 private:
  std::string text_;
};

class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {}
  int64_t number() {
    int64_t value = 0;
    check<DataError>(text_.size() >= sizeof value, "the index ends early");
    std::memcpy(&value, text_.data(), sizeof value);
    text_.remove_prefix(sizeof value);
    return value;
  }
  std::string bytes() {
    const int64_t size = number();
    check<DataError>(0 <= size && size <= static_cast<int64_t>(text_.size()), "the index ends early");
    std::string value(text_.substr(0, size));
    text_.remove_prefix(size);
    return value;
  }
  bool is_at_end() const { return text_.empty(); }

 private:
  std::string_view text_;
};

}  // namespace

std::string TokenSource::index_key() const {
  Sha256 digest;
  const auto add = [&](const std::string& text) { digest.update(text.data(), text.size() + 1); };
  add(concat(kIndexFormat, row_tokens_, ' ', block_documents_));
  digest.update(&held_.fraction, sizeof held_.fraction);
  for (const TokenShard& shard : shards_) {
    const ShardInfo& info = shard.info();
    add(concat(fs::path(info.path).filename().string(), ' ', info.num_tokens, ' ', info.num_documents, ' ',
               shard.stamp().bytes, ' ', shard.stamp().modified_ns));
  }
  return digest.hex();
}

std::string TokenSource::index_path() const {
  const fs::path folder = fs::path(shards_.front().info().path).parent_path();
  return (folder / concat("packing-", index_key().substr(0, 16), ".index")).string();
}

bool TokenSource::read_index() {
  if (num_blocks() < kBlocksWorthStoring) return false;
  const std::string text = file_text(index_path());
  const std::string_view format = kIndexFormat;
  constexpr size_t kDigest = 64;
  if (text.size() < format.size() + kDigest || !text.starts_with(format)) return false;
  const std::string_view content = std::string_view(text).substr(0, text.size() - kDigest);
  if (sha256(content) != std::string_view(text).substr(content.size())) return false;  // it is made again
  try {
    Reader in(content.substr(format.size()));
    if (in.bytes() != index_key()) return false;
    std::string digest = in.bytes();
    HeldOut held{.fraction = held_.fraction};
    held.by_hash = in.number() != 0;
    held.cut_document = in.number();
    held.cut_tokens = in.number();
    for (int64_t left = in.number(); left > 0; --left) held.documents.push_back(in.number());
    std::array<std::vector<int64_t>, 2> rows_before;
    std::array<int64_t, 2> num_tokens = {};
    for (const size_t split : {0, 1}) {
      num_tokens[split] = in.number();
      rows_before[split] = {0};
      rows_before[split].reserve(num_blocks() + 1);
      for (int64_t block = 0; block < num_blocks(); ++block)
        rows_before[split].push_back(rows_before[split].back() + in.number());
    }
    if (!in.is_at_end()) return false;
    held_ = std::move(held);
    rows_before_ = std::move(rows_before);
    num_tokens_ = num_tokens;
    documents_digest_ = std::move(digest);
    return true;
  } catch (const DataError&) {
    return false;
  }
}

// A folder that cannot be written costs the next start the same time again, nothing else.
void TokenSource::write_index() const {
  Writer out;
  out.text() = kIndexFormat;
  out.bytes(index_key());
  out.bytes(documents_digest_);
  out.number(held_.by_hash);
  out.number(held_.cut_document);
  out.number(held_.cut_tokens);
  out.number(static_cast<int64_t>(held_.documents.size()));
  for (const int64_t document : held_.documents) out.number(document);
  for (const size_t split : {0, 1}) {
    out.number(num_tokens_[split]);
    for (int64_t block = 0; block < num_blocks(); ++block)
      out.number(rows_before_[split][block + 1] - rows_before_[split][block]);
  }
  out.text() += sha256(out.text());
  try {
    write_file_atomically(index_path(), out.text());
  } catch (const IoError&) {}
}

}  // namespace braid
