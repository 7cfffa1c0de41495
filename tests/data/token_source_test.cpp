#include "data/token_source.h"

#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <map>
#include <random>

#include "data/pooled_file.h"
#include "data/row_window.h"
#include "data/token_dataset.h"
#include "kernels/core/error.h"
#include "tests/data/shard_files.h"

namespace braid {
namespace {

using namespace braid::testing;

namespace fs = std::filesystem;

// First fit over the 64 rows that are open, the fullest of them closed where
// one more is needed; whole rows stand alone.
std::vector<int64_t> reference_rows(const std::vector<int64_t>& sizes, int64_t row_tokens) {
  struct Row {
    int64_t row, free;
  };
  std::vector<Row> open;
  std::vector<int64_t> rows;
  int64_t num_rows = 0;
  for (const int64_t size : sizes) {
    if (size == row_tokens) {
      rows.push_back(num_rows++);
      continue;
    }
    auto row = std::find_if(open.begin(), open.end(), [&](const Row& r) { return r.free >= size; });
    if (row == open.end()) {
      if (open.size() == 64)
        open.erase(std::min_element(open.begin(), open.end(), [](auto& a, auto& b) { return a.free < b.free; }));
      row = open.insert(open.end(), {num_rows++, row_tokens});
    }
    row->free -= size;
    rows.push_back(row->row);
  }
  return rows;
}

TEST(RowWindow, IsFirstFit) {
  std::mt19937 random(1);
  for (const int64_t row_tokens : {1, 7, 100, 4096}) {
    std::vector<int64_t> sizes(5000);
    for (int64_t& size : sizes) size = 1 + static_cast<int64_t>(random() % row_tokens);
    RowWindow window(row_tokens);
    std::vector<int64_t> rows;
    for (const int64_t size : sizes) rows.push_back(window.row_for(static_cast<int32_t>(size)));
    EXPECT_EQ(rows, reference_rows(sizes, row_tokens)) << row_tokens;
    EXPECT_EQ(window.num_rows(), *std::max_element(rows.begin(), rows.end()) + 1);
  }
}

TEST(RowWindow, PacksSeveralAsEachByItself) {
  std::mt19937 random(3);
  std::vector<std::vector<int32_t>> pieces;
  for (const int64_t count : {3000, 0, 2900, 7}) {
    pieces.emplace_back(count);
    for (int32_t& tokens : pieces.back()) tokens = 1 + static_cast<int32_t>(random() % 100);
  }
  std::vector<RowWindow> windows(pieces.size(), RowWindow(100));
  RowWindow::pack(windows, pieces);
  for (size_t w = 0; w < pieces.size(); ++w) {
    RowWindow alone(100);
    for (const int32_t tokens : pieces[w]) alone.row_for(tokens);
    EXPECT_EQ(windows[w].num_rows(), alone.num_rows());
    EXPECT_EQ(windows[w].row_for(50), alone.row_for(50));
  }
}

// A row as it is listed is what all rows of the block, written out one by one, have there.
TEST(BlockRows, ListsTheRowsThatPackingMakes) {
  std::mt19937 random(4);
  for (const int64_t row_tokens : {2, 7, 100}) {
    BlockRows block(row_tokens);
    std::vector<Piece> pieces;
    std::vector<int64_t> sizes;
    int64_t begin = 0;
    for (int64_t d = 0; d < 3000; ++d) {
      const auto ending = random() % 5 ? Ending::kDocument : Ending::kHeldOut;
      const auto tokens = static_cast<int64_t>(d % 3 == 0 ? random() % (9 * row_tokens) : random() % (row_tokens + 2));
      block.add({begin, tokens, d, static_cast<int32_t>(d / 1000), ending});
      int64_t at = begin;
      for (; begin + tokens - at > row_tokens; at += row_tokens)
        pieces.push_back({at, d, static_cast<int32_t>(d / 1000), static_cast<int32_t>(row_tokens), Ending::kNextPiece});
      if (begin + tokens - at >= 2)
        pieces.push_back({at, d, static_cast<int32_t>(d / 1000), static_cast<int32_t>(begin + tokens - at), ending});
      begin += tokens;
    }
    for (const Piece& piece : pieces) sizes.push_back(piece.tokens);
    const std::vector<int64_t> rows = reference_rows(sizes, row_tokens);
    ASSERT_EQ(block.num_rows(), *std::max_element(rows.begin(), rows.end()) + 1);
    std::vector<std::vector<Piece>> expected(block.num_rows());
    for (size_t p = 0; p < pieces.size(); ++p) expected[rows[p]].push_back(pieces[p]);
    for (int64_t r = 0; r < block.num_rows(); ++r) {
      const std::vector<Piece> found = block.row(r);
      ASSERT_EQ(found.size(), expected[r].size()) << r;
      for (size_t p = 0; p < found.size(); ++p) {
        const Piece &a = found[p], &b = expected[r][p];
        ASSERT_TRUE(a.begin == b.begin && a.document == b.document && a.shard == b.shard && a.tokens == b.tokens &&
                    a.ending == b.ending)
            << r;
      }
    }
  }
}

TEST(HeldOut, SaysOfManyDocumentsWhatItSaysOfEach) {
  for (const HeldOut& held : {HeldOut{.fraction = 0.3}, HeldOut{.fraction = 0},
                              HeldOut{.fraction = 0.5, .by_hash = false, .documents = {3, 70, 71, 500}}}) {
    std::vector<uint8_t> many(100);
    for (const int64_t first : {0, 60, 1000000}) {
      held.hold(first, many);
      for (int64_t i = 0; i < 100; ++i) ASSERT_EQ(many[i] != 0, held.holds(first + i)) << first << ' ' << i;
    }
  }
}

// 300,000 documents in three shards: 74 blocks.
class LargeSource : public ::testing::Test {
 protected:
  static constexpr int64_t kRowTokens = 16;

  LargeSource() {
    std::mt19937 random(2);
    for (const int64_t documents : {100'001, 7, 200'000}) {
      std::vector<int64_t> lengths(documents);
      for (int64_t& length : lengths) length = random() % 50 == 0 ? 1 + random() % 60 : 2 + random() % 9;
      paths_.push_back(write_shard(folder_ / concat(paths_.size(), ".h5"), lengths));
      lengths_.push_back(std::move(lengths));
    }
  }
  TokenSource open(int64_t row_tokens = kRowTokens, double fraction = 0.1) const {
    return TokenSource("large", paths_, row_tokens, fraction);
  }
  std::vector<std::string> indices() const {
    std::vector<std::string> found;
    for (const auto& entry : fs::directory_iterator(fs::path(paths_[0]).parent_path()))
      if (entry.path().extension() == ".index") found.push_back(entry.path().string());
    return found;
  }

  TemporaryFolder folder_;
  std::vector<std::string> paths_;
  std::vector<std::vector<int64_t>> lengths_;
};

TEST_F(LargeSource, TakesEveryTokenOnce) {
  const TokenSource source = open();
  std::vector<std::vector<uint8_t>> taken;
  for (size_t shard = 0; shard < 3; ++shard) taken.emplace_back(source.shards()[shard].info().num_tokens, 0);
  std::vector<std::vector<int64_t>> offsets;
  for (const TokenShard& shard : source.shards()) offsets.push_back(shard.document_offsets());
  std::array<int64_t, 2> tokens = {};
  for (const Split split : {Split::kTrain, Split::kValidation}) {
    for (int64_t r = 0; r < source.num_rows(split); ++r) {
      int64_t in_row = 0;
      for (const Piece& piece : source.row(split, r)) {
        ASSERT_LE(offsets[piece.shard][piece.document], piece.begin);
        ASSERT_LE(piece.begin + piece.tokens, offsets[piece.shard][piece.document + 1]);
        for (int64_t t = piece.begin; t < piece.begin + piece.tokens; ++t) ASSERT_EQ(taken[piece.shard][t]++, 0);
        in_row += piece.tokens;
      }
      ASSERT_LE(in_row, kRowTokens);
      ASSERT_GT(in_row, 0);
      tokens[split == Split::kValidation] += in_row;
    }
    EXPECT_EQ(source.num_tokens(split), tokens[split == Split::kValidation]);
  }
  int64_t left_out = 0, all = 0;
  for (size_t shard = 0; shard < 3; ++shard) {
    all += static_cast<int64_t>(taken[shard].size());
    for (size_t d = 0; d + 1 < offsets[shard].size(); ++d)
      for (int64_t t = offsets[shard][d]; t < offsets[shard][d + 1]; ++t) {
        if (taken[shard][t]) continue;
        ++left_out;  // the end of a document, alone in its piece
        ASSERT_EQ((t - offsets[shard][d]) % kRowTokens, 0);
        ASSERT_EQ(t + 1, offsets[shard][d + 1]);
      }
  }
  EXPECT_EQ(tokens[0] + tokens[1] + left_out, all);
  EXPECT_NEAR(double(tokens[1]) / double(all), 0.1, 0.005);
  EXPECT_GT(double(tokens[0]) / double(source.num_rows(Split::kTrain) * kRowTokens), 0.97);
}

TEST_F(LargeSource, StoresItsCountsBesideTheData) {
  const TokenSource first = open();
  EXPECT_FALSE(first.was_stored());
  ASSERT_EQ(indices().size(), 1u);
  const auto expect_same = [&](const TokenSource& source) {
    for (const Split split : {Split::kTrain, Split::kValidation}) {
      EXPECT_EQ(source.num_rows(split), first.num_rows(split));
      EXPECT_EQ(source.num_tokens(split), first.num_tokens(split));
      for (int64_t r = 0; r < first.num_rows(split); r += 997) {
        const std::vector<Piece> a = source.row(split, r), b = first.row(split, r);
        ASSERT_EQ(a.size(), b.size());
        for (size_t p = 0; p < a.size(); ++p) {
          EXPECT_EQ(a[p].begin, b[p].begin);
          EXPECT_EQ(a[p].shard, b[p].shard);
        }
      }
    }
    EXPECT_EQ(source.documents_digest(), first.documents_digest());
  };
  const TokenSource again = open();
  EXPECT_TRUE(again.was_stored());
  expect_same(again);

  // Another cut has counts of its own.
  EXPECT_FALSE(open(32).was_stored());
  EXPECT_FALSE(open(kRowTokens, 0.2).was_stored());
  EXPECT_NE(open(32).documents_digest(), first.documents_digest());
  EXPECT_EQ(indices().size(), 3u);

  // What is damaged is made again.
  for (const std::string& index : indices()) {
    std::string bytes = bytes_of(index);
    bytes[bytes.size() / 2] ^= 4;
    write_bytes(index, bytes);
  }
  const TokenSource counted = open();
  EXPECT_FALSE(counted.was_stored());
  expect_same(counted);
  EXPECT_TRUE(open().was_stored());
  for (const std::string& index : indices()) fs::resize_file(index, 100);
  EXPECT_FALSE(open().was_stored());

  // Other documents: counted anew, and another digest.
  lengths_[1][3] += 2;
  write_shard(paths_[1], lengths_[1]);
  const TokenSource changed = open();
  EXPECT_FALSE(changed.was_stored());
  EXPECT_NE(changed.documents_digest(), first.documents_digest());
}

TEST_F(LargeSource, NamesDamagedOffsets) {
  std::string bytes = bytes_of(paths_[2]);
  const std::vector<int64_t> offsets = TokenShard(paths_[2]).document_offsets();
  const std::string pair(reinterpret_cast<const char*>(&offsets[150'000]), 16);
  const size_t at = bytes.find(pair);
  ASSERT_NE(at, bytes.npos);
  bytes[at + 3] ^= 1;
  write_bytes(paths_[2], bytes);
  expect_contains(message_of<DataError>([&] { open(); }), "2.h5: document_offsets: expected ascending values");
  expect_contains(message_of<DataError>([&] { TokenShard shard(paths_[2]); }), "expected ascending values");
}

// A soft limit on open files for as long as it lives.
class FileLimit {
 public:
  explicit FileLimit(rlim_t files) {
    ::getrlimit(RLIMIT_NOFILE, &before_);
    const rlimit limit = {std::min(files, before_.rlim_max), before_.rlim_max};
    ::setrlimit(RLIMIT_NOFILE, &limit);
  }
  ~FileLimit() { ::setrlimit(RLIMIT_NOFILE, &before_); }

 private:
  rlimit before_ = {};
};

TEST(TokenSource, ReadsMoreShardsThanFilesMayBeOpen) {
  const FileLimit limit(PooledFile::kMaxOpen + 40);
  TemporaryFolder folder;
  std::vector<std::string> paths;
  for (int i = 0; i < 600; ++i) paths.push_back(write_shard(folder / concat(i, ".h5"), {3, 4}, 7 * i));
  const TokenDataset dataset("many", paths, 8, Split::kTrain, 0), other("many", paths, 8, Split::kValidation, 0.5);
  EXPECT_EQ(dataset.num_tokens(), 600 * 7);
  Batch batch;
  for (int64_t r = 0; r < dataset.size(); ++r) dataset.append_row((r * 7919) % dataset.size(), batch);
  EXPECT_EQ(batch.segments.num_valid(), 600 * 7);
}

TEST(TokenSource, NoticesAShardThatChangesWhileItIsUsed) {
  TemporaryFolder folder;
  std::vector<std::string> paths;
  for (size_t i = 0; i < PooledFile::kMaxOpen + 2; ++i) paths.push_back(write_shard(folder / concat(i, ".h5"), {4}));
  const TokenDataset dataset("changing", paths, 4, Split::kTrain, 0);  // the first file is closed by now
  fs::remove(paths[0]);
  write_shard(paths[0], {4, 4});
  Batch batch;
  expect_contains(message_of<DataError>([&] {
                    for (int64_t r = 0; r < dataset.size(); ++r) dataset.append_row(r, batch);
                  }),
                  "0.h5: was changed or replaced while it was in use");
}

}  // namespace
}  // namespace braid
