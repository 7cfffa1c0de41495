#include "data/token_dataset.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <random>
#include <set>

#include "data/corpus/text_input.h"
#include "data/tokenizer/tokenizer.h"
#include "kernels/core/error.h"
#include "tests/data/shard_files.h"

namespace braid {
namespace {

using namespace braid::testing;

TokenDataset open(const std::vector<std::string>& paths, int64_t row_tokens, Split split = Split::kTrain,
                  double fraction = 0) {
  return TokenDataset("source", paths, row_tokens, split, fraction);
}

Batch row(const TokenDataset& dataset, int64_t index) {
  Batch batch;
  dataset.append_row(index, batch);
  return batch;
}

Batch all_rows(const TokenDataset& dataset) {
  Batch batch;
  for (int64_t i = 0; i < dataset.size(); ++i) dataset.append_row(i, batch);
  return batch;
}

// ---- Packing

TEST(TokenDataset, PacksDocumentsFirstFitAndPadsTheRest) {
  TemporaryFolder folder;
  // Rows of 8: documents 5 and 3 fill the first, 6 opens the second, 4 the third; 2 goes back to the second.
  const TokenDataset dataset = open({write_shard(folder / "a.h5", {5, 3, 6, 4, 2})}, 8);
  ASSERT_EQ(dataset.size(), 3);
  EXPECT_EQ(dataset.num_tokens(), 20);
  constexpr int64_t E = kEnd;
  const Batch batch = all_rows(dataset);
  EXPECT_EQ(batch.num_rows, 3);
  EXPECT_EQ(batch.row_tokens, 8);
  EXPECT_EQ(batch.tokens,
            (std::vector<int64_t>{0, 1, 2, 3, E, 4, 5, E, 6, 7, 8, 9, 10, E, 14, E, 11, 12, 13, E, E, E, E, E}));
  EXPECT_EQ(batch.targets,
            (std::vector<int64_t>{1, 2, 3, E, -1, 5, E, -1, 7, 8, 9, 10, E, -1, E, -1, 12, 13, E, -1, -1, -1, -1, -1}));
  EXPECT_EQ(batch.segments.num_rows, 3);
  EXPECT_EQ(batch.segments.row_tokens, 8);
  EXPECT_EQ(batch.segments.offsets, (std::vector<int64_t>{0, 5, 8, 14, 16, 20, 24}));
  std::vector<uint8_t> valid(24, 1);
  std::fill(valid.begin() + 20, valid.end(), 0);
  EXPECT_EQ(batch.segments.valid, valid);
}

TEST(TokenDataset, CutsLongDocumentsIntoRowsThatKnowTheirNextToken) {
  TemporaryFolder folder;
  const TokenDataset dataset = open({write_shard(folder / "a.h5", {10})}, 4);
  ASSERT_EQ(dataset.size(), 3);
  EXPECT_EQ(row(dataset, 0).targets, (std::vector<int64_t>{1, 2, 3, 4}));
  EXPECT_EQ(row(dataset, 1).tokens, (std::vector<int64_t>{4, 5, 6, 7}));
  EXPECT_EQ(row(dataset, 1).targets, (std::vector<int64_t>{5, 6, 7, 8}));
  EXPECT_EQ(row(dataset, 2).tokens, (std::vector<int64_t>{8, kEnd, kEnd, kEnd}));
  EXPECT_EQ(row(dataset, 2).targets, (std::vector<int64_t>{kEnd, -1, -1, -1}));
  EXPECT_EQ(row(dataset, 2).segments.offsets, (std::vector<int64_t>{0, 2, 4}));
}

TEST(TokenDataset, LeavesOutPiecesThatPredictNothing) {
  TemporaryFolder folder;
  // Lone end-of-document ids, and one left over by the cut: its row already has it as a target.
  const TokenDataset dataset = open({write_shard(folder / "a.h5", {1, 5, 1, 1, 3})}, 4);
  EXPECT_EQ(dataset.num_tokens(), 7);
  ASSERT_EQ(dataset.size(), 2);
  EXPECT_EQ(row(dataset, 0).targets, (std::vector<int64_t>{1, 2, 3, kEnd}));
  EXPECT_EQ(row(dataset, 1).tokens, (std::vector<int64_t>{4, 5, kEnd, kEnd}));
}

TEST(TokenDataset, SaysWhatARowIsMadeOf) {
  TemporaryFolder folder;
  const std::vector<std::string> paths = {write_shard(folder / "a.h5", {5, 0, 3, 10}), write_shard(folder / "b.h5", {}),
                                          write_shard(folder / "c.h5", {2, 9})};
  const TokenDataset dataset = open(paths, 4);
  std::set<std::pair<int64_t, int64_t>> seen;  // shard, token
  for (int64_t r = 0; r < dataset.size(); ++r) {
    const Batch batch = row(dataset, r);
    int64_t at = 0;
    for (const TokenDataset::RowPiece& piece : dataset.pieces_of_row(r)) {
      const TokenShard& shard = dataset.shards()[piece.shard];
      const int64_t begin = shard.document_offsets()[piece.document] + piece.offset;
      ASSERT_LE(begin + piece.tokens, shard.document_offsets()[piece.document + 1]);
      std::vector<uint32_t> ids(piece.tokens);
      shard.read(begin, begin + piece.tokens, ids.data());
      for (int64_t t = 0; t < piece.tokens; ++t, ++at) {
        EXPECT_EQ(batch.tokens[at], ids[t]);
        EXPECT_TRUE(seen.emplace(piece.shard, begin + t).second);
      }
    }
    EXPECT_EQ(std::count(batch.segments.valid.begin(), batch.segments.valid.end(), 1), at);
  }
  EXPECT_EQ(static_cast<int64_t>(seen.size()), dataset.num_tokens());
}

TEST(TokenDataset, WorksWithRowsOfOneToken) {
  TemporaryFolder folder;
  const TokenDataset dataset = open({write_shard(folder / "a.h5", {3, 1, 2})}, 1);
  EXPECT_EQ(all_rows(dataset).tokens, (std::vector<int64_t>{0, 1, 2}));
  EXPECT_EQ(all_rows(dataset).targets, (std::vector<int64_t>{1, kEnd, kEnd}));
}

// Every token with a target appears exactly once, whatever the lengths.
TEST(TokenDataset, LosesNothingAndRepeatsNothing) {
  TemporaryFolder folder;
  std::mt19937 random(5);
  for (int64_t row_tokens : {7, 32, 100}) {
    std::vector<int64_t> lengths;
    int64_t tokens = 0;
    while (tokens < 900) lengths.push_back(1 + static_cast<int64_t>(random() % 60)), tokens += lengths.back();
    const TokenDataset dataset = open({write_shard(folder / "a.h5", lengths)}, row_tokens);
    const Batch batch = all_rows(dataset);
    std::map<std::pair<int64_t, int64_t>, int> found, expected;
    for (size_t t = 0; t < batch.tokens.size(); ++t)
      if (batch.targets[t] >= 0) ++found[{batch.tokens[t], batch.targets[t]}];
    int64_t next = 0;
    for (int64_t length : lengths)
      for (int64_t i = 0; i + 1 < length; ++i, ++next)
        ++expected[{next % kEnd, i + 2 < length ? (next + 1) % kEnd : kEnd}];
    EXPECT_EQ(found, expected);
    EXPECT_EQ(batch.segments.num_valid(), dataset.num_tokens());
    for (int64_t d = 0; d < batch.segments.num_documents(); ++d) {
      ASSERT_GT(batch.segments.length(d), 0);
      EXPECT_EQ(batch.segments.begin(d) / row_tokens, (batch.segments.end(d) - 1) / row_tokens) << "crosses a row";
    }
    for (size_t t = 0; t < batch.tokens.size(); ++t) {
      if (batch.segments.valid[t]) continue;
      EXPECT_EQ(batch.tokens[t], kEnd);
      EXPECT_EQ(batch.targets[t], -1);
    }
  }
}

TEST(TokenDataset, WastesLittleRoom) {
  TemporaryFolder folder;
  std::mt19937 random(6);
  std::lognormal_distribution<double> length(5, 1);
  std::vector<int64_t> lengths(2000);
  for (int64_t& l : lengths) l = 2 + static_cast<int64_t>(length(random));
  const TokenDataset dataset = open({write_shard(folder / "a.h5", lengths)}, 1024);
  EXPECT_GT(double(dataset.num_tokens()) / double(dataset.size() * 1024), 0.97);
}

TEST(TokenDataset, AppendsToARowThatSomeoneElseBegan) {
  TemporaryFolder folder;
  const TokenDataset a = open({write_shard(folder / "a.h5", {4})}, 4), b = open({write_shard(folder / "b.h5", {3})}, 4);
  Batch batch;
  b.append_row(0, batch);
  a.append_row(0, batch);
  EXPECT_EQ(batch.num_rows, 2);
  EXPECT_EQ(batch.segments.offsets, (std::vector<int64_t>{0, 3, 4, 8}));
  EXPECT_EQ(batch.segments.valid, (std::vector<uint8_t>{1, 1, 1, 0, 1, 1, 1, 1}));
}

TEST(TokenDataset, ReadsEmptyShardsAsIfTheyWereNotThere) {
  TemporaryFolder folder;
  const std::string a = write_shard(folder / "a.h5", {9, 4, 30}), b = write_shard(folder / "b.h5", {12, 3}, 500);
  const std::string empty = write_shard(folder / "empty.h5", {});
  for (Split split : {Split::kTrain, Split::kValidation}) {
    const Batch expected = all_rows(open({a, b}, 8, split, 0.3));
    EXPECT_GT(expected.num_rows, 0);
    for (const std::vector<std::string>& paths : {std::vector{empty, a, b}, {a, empty, b}, {a, b, empty}}) {
      const Batch batch = all_rows(open(paths, 8, split, 0.3));
      EXPECT_EQ(batch.tokens, expected.tokens);
      EXPECT_EQ(batch.targets, expected.targets);
      EXPECT_EQ(batch.segments.offsets, expected.segments.offsets);
    }
  }
}

// ---- Held-out part

// The (token, target) pairs of a split. Ids below must be unique over the shards.
std::set<std::pair<int64_t, int64_t>> pairs_of(const TokenDataset& dataset) {
  std::set<std::pair<int64_t, int64_t>> pairs;
  const Batch batch = all_rows(dataset);
  for (size_t t = 0; t < batch.tokens.size(); ++t)
    if (batch.targets[t] >= 0) {
      EXPECT_TRUE(pairs.insert({batch.tokens[t], batch.targets[t]}).second);
    }
  return pairs;
}

struct SplitCase {
  const char* name;
  std::vector<int64_t> lengths;
  double fraction;
  int64_t cut_pairs;  // (token, target) pairs that are lost because a document is cut in two
};

TEST(Validation, HoldsOutNearlyTheFractionOfTheTokens) {
  const std::vector<SplitCase> cases = {
      {"many documents", std::vector<int64_t>(90, 10), 0.1, 0},
      {"many documents, large fraction", std::vector<int64_t>(90, 10), 0.7, 0},
      {"one huge and many small", {600, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20}, 0.1, 0},
      {"one document", {900}, 0.05, 1},
      {"two documents", {400, 500}, 0.05, 1},
      {"a handful of large ones", {150, 200, 250, 180}, 0.03, 1},
      {"a huge one at the end", {10, 12, 9, 800}, 0.2, 1},
      {"a huge one at the start", {800, 10, 12, 9}, 0.2, 1},
  };
  TemporaryFolder folder;
  for (const SplitCase& c : cases) {
    SCOPED_TRACE(c.name);
    const std::string path = write_shard(folder / "a.h5", c.lengths);
    const TokenDataset train = open({path}, 16, Split::kTrain, c.fraction);
    const TokenDataset validation = open({path}, 16, Split::kValidation, c.fraction);
    const auto train_pairs = pairs_of(train), validation_pairs = pairs_of(validation), all = pairs_of(open({path}, 16));
    const double share = double(validation_pairs.size()) / double(all.size());
    EXPECT_GT(share, 0.5 * c.fraction);
    EXPECT_LT(share, 1.5 * c.fraction);
    // Nothing is in both, next to nothing in neither.
    for (const auto& pair : validation_pairs) EXPECT_EQ(train_pairs.count(pair), 0u);
    EXPECT_EQ(train_pairs.size() + validation_pairs.size() + c.cut_pairs, all.size());
  }
}

TEST(Validation, CutsTheEndOfTheLastDocument) {
  TemporaryFolder folder;
  const std::string path = write_shard(folder / "a.h5", {40, 60});
  const TokenDataset train = open({path}, 200, Split::kTrain, 0.1);
  const TokenDataset validation = open({path}, 200, Split::kValidation, 0.1);
  EXPECT_EQ(train.num_tokens(), 90);
  EXPECT_EQ(validation.num_tokens(), 10);
  const Batch held_out = row(validation, 0);
  EXPECT_EQ(held_out.tokens[0], 89);
  EXPECT_EQ(held_out.tokens[8], 97);
  EXPECT_EQ(held_out.tokens[9], kEnd);
  // The token in front of the cut must not be taught what follows.
  const Batch trained = row(train, 0);
  EXPECT_EQ(trained.tokens[89], 88);
  EXPECT_EQ(trained.targets[88], 88);
  EXPECT_EQ(trained.targets[89], -1);
}

TEST(Validation, IsTheSameWhateverTheRowLength) {
  TemporaryFolder folder;
  const std::string path = write_shard(folder / "a.h5", std::vector<int64_t>(60, 15));
  const auto expected = pairs_of(open({path}, 1000, Split::kValidation, 0.2));
  EXPECT_EQ(pairs_of(open({path}, 4, Split::kValidation, 0.2)), expected);
  EXPECT_EQ(pairs_of(open({path}, 33, Split::kValidation, 0.2)), expected);
}

TEST(Validation, IsEmptyWithoutAFractionOrWithTooFewTokens) {
  TemporaryFolder folder;
  const std::string path = write_shard(folder / "a.h5", {50, 50}), tiny = write_shard(folder / "tiny.h5", {3});
  EXPECT_EQ(open({path}, 16, Split::kValidation, 0).size(), 0);
  EXPECT_EQ(open({tiny}, 16, Split::kValidation, 0.5).size(), 0);
  EXPECT_EQ(open({tiny}, 16, Split::kTrain, 0.5).num_tokens(), 3);
}

TEST(Validation, LeavesSomethingToBothForTheSmallestCorpora) {
  TemporaryFolder folder;
  for (const std::vector<int64_t>& lengths : {std::vector<int64_t>{4}, {2, 2}, {1, 4, 1}, {3, 2}, {100}})
    for (double fraction : {0.001, 0.5, 0.999}) {
      const std::string path = write_shard(folder / "a.h5", lengths);
      EXPECT_GE(pairs_of(open({path}, 16, Split::kTrain, fraction)).size(), 1u) << lengths.size() << ' ' << fraction;
      EXPECT_GE(pairs_of(open({path}, 16, Split::kValidation, fraction)).size(), 1u)
          << lengths.size() << ' ' << fraction;
    }
}

// ---- Errors

TEST(TokenDataset, NamesTheShardThatDoesNotFit) {
  TemporaryFolder folder;
  const std::string a = write_shard(folder / "a.h5", {5});
  const std::string other = write_shard(folder / "other.h5", {5}, 0, "another digest");
  const std::string message = message_of<DataError>([&] { open({a, other}, 8); });
  expect_contains(message, other + " has tokenizer digest another digest, but " + a + " has digest");

  const std::string larger = folder / "larger.h5";
  TokenShardWriter writer(larger, 2 * kVocabulary, kEnd, "test", "digest");
  writer.close();
  expect_contains(message_of<DataError>([&] { open({a, larger}, 8); }), "larger.h5 has a vocabulary of 2000, but");
  const std::string ends = folder / "ends.h5";
  TokenShardWriter(ends, kVocabulary, 0, "test", "digest").close();
  expect_contains(message_of<DataError>([&] { open({a, ends}, 8); }), "ends.h5 has end-of-document id 0, but");

  expect_contains(message_of<DataError>([&] { open({a, folder / "missing.h5"}, 8); }), "missing.h5");
}

TEST(TokenDataset, RefusesToTrainOnNothing) {
  TemporaryFolder folder;
  const std::string empty = write_shard(folder / "empty.h5", {}), lone = write_shard(folder / "lone.h5", {1, 1});
  expect_contains(message_of<DataError>([&] { open({empty}, 8); }), "source: nothing to train on in 0 documents");
  expect_contains(message_of<DataError>([&] { open({empty, lone}, 8); }), "nothing to train on in 2 documents");
  EXPECT_EQ(open({empty}, 8, Split::kValidation, 0.1).size(), 0);
  expect_contains(message_of<DataError>([&] { open({}, 8); }), "source: no token shards");
  EXPECT_THROW(open({lone}, 0), ConfigError);
  EXPECT_THROW(open({lone}, 8, Split::kTrain, 1), ConfigError);
  EXPECT_THROW(open({lone}, 8, Split::kTrain, -0.1), ConfigError);
}

TEST(TokenDataset, NoticesOffsetsThatDoNotMatchTheTokens) {
  TemporaryFolder folder;
  const std::string path = write_shard(folder / "a.h5", {10, 10});
  std::string bytes = bytes_of(path);
  const int64_t offsets[] = {0, 10, 20}, damaged[] = {0, 11, 20};
  const size_t at = bytes.find(std::string(reinterpret_cast<const char*>(offsets), sizeof offsets));
  ASSERT_NE(at, std::string::npos);
  bytes.replace(at, sizeof damaged, reinterpret_cast<const char*>(damaged), sizeof damaged);
  write_bytes(path, bytes);
  const TokenDataset dataset = open({path}, 32);
  Batch batch;
  expect_contains(message_of<DataError>([&] { dataset.append_row(0, batch); }),
                  path + ": tokens[10] is 9, expected the end-of-document id 999");
  EXPECT_EQ(batch.num_rows, 0);
  EXPECT_TRUE(batch.tokens.empty() && batch.targets.empty() && batch.segments.offsets.empty());
}

// ---- Files

TEST(ListInputs, ListsFoldersSortedAndKeepsNamedFiles) {
  TemporaryFolder folder;
  for (const char* name : {"d/b.h5", "d/a.h5", "d/sub/c.h5", "d/notes.txt", "d/x.h5.part", "named.bin"})
    write_bytes(folder / name, "x");
  EXPECT_EQ(
      paths_of(list_inputs({folder / "named.bin", folder / "d"}, ".h5")),
      (std::vector<std::string>{folder / "named.bin", folder / "d/a.h5", folder / "d/b.h5", folder / "d/sub/c.h5"}));
  EXPECT_EQ(list_inputs({folder / "d"}).files.size(), 5u);
}

TEST(ListInputs, NamesThePathThatIsWrong) {
  TemporaryFolder folder;
  write_bytes(folder / "d/a.txt", "x");
  expect_contains(message_of<DataError>([&] { list_inputs({folder / "none"}, ".h5"); }), "none: does not exist");
  expect_contains(message_of<DataError>([&] { list_inputs({folder / "d"}, ".h5"); }),
                  "d: the folder holds no *.h5 files");
  std::filesystem::create_directory(folder / "empty");
  expect_contains(message_of<DataError>([&] { list_inputs({folder / "empty"}); }), "empty: the folder holds no files");
}

// A file that counted twice could be trained on and held out at the same time.
TEST(ListInputs, TakesAFileOnceWhateverLeadsToIt) {
  TemporaryFolder folder;
  write_bytes(folder / "d/a.txt", "x");
  std::filesystem::create_symlink(folder / "d/a.txt", folder / "link.txt");
  const InputList list = list_inputs({folder / "d", folder / "d/a.txt", folder / "link.txt"}, ".txt");
  EXPECT_EQ(paths_of(list), std::vector<std::string>{folder / "d/a.txt"});
  EXPECT_EQ(list.met_again, 2);
}

// ---- Text

std::string text_of(const TokenShard& shard) {
  std::vector<uint32_t> tokens(shard.info().num_tokens);
  shard.read(0, shard.info().num_tokens, tokens.data());
  for (uint32_t& token : tokens)
    if (token == ByteTokenizer::kEndOfDocument) token = '|';
  return ByteTokenizer().decode(tokens);
}

TEST(TokenizeFiles, MakesADocumentOfEachTextFile) {
  TemporaryFolder folder;
  write_bytes(folder / "t/a.txt", "one");
  write_bytes(folder / "t/c.txt", "");
  write_bytes(folder / "t/d.txt", "dré\n");
  const ShardInfo info = tokenize_files(paths_of(list_inputs({folder / "t"})), folder / "out.h5");
  EXPECT_EQ(info.num_documents, 3);
  EXPECT_EQ(info.vocab_size, 258);
  EXPECT_EQ(info.tokenizer, "byte");
  EXPECT_EQ(info.tokenizer_digest, ByteTokenizer().digest());
  EXPECT_EQ(text_of(TokenShard(folder / "out.h5")), "one||dré\n|");
}

TEST(TokenizeFiles, ReadsFilesLargerThanItsBuffer) {
  TemporaryFolder folder;
  std::string text;
  while (text.size() < (2 << 20) + 100) text += std::to_string(text.size()) + ' ';
  write_bytes(folder / "a.txt", text);
  tokenize_files({folder / "a.txt"}, folder / "out.h5");
  EXPECT_EQ(text_of(TokenShard(folder / "out.h5")), text + '|');
}

TEST(TokenizeFiles, KeepsAShardOfTheSameContents) {
  TemporaryFolder folder;
  write_bytes(folder / "t/a.txt", "one");
  write_bytes(folder / "t/b.txt", "two");
  const std::string out = folder / "out.h5";
  auto tokenize = [&](const std::string& from) {
    const auto before =
        std::filesystem::exists(out) ? std::filesystem::last_write_time(out) : std::filesystem::file_time_type::min();
    tokenize_files(paths_of(list_inputs({folder / from})), out);
    return std::filesystem::last_write_time(out) != before;  // was it written?
  };
  EXPECT_TRUE(tokenize("t"));
  EXPECT_FALSE(tokenize("t"));
  std::filesystem::rename(folder / "t", folder / "moved");
  EXPECT_FALSE(tokenize("moved"));
  write_bytes(folder / "moved/b.txt", "zwei");
  EXPECT_TRUE(tokenize("moved"));
  EXPECT_EQ(text_of(TokenShard(out)), "one|zwei|");
  // The same bytes in other documents are other data.
  write_bytes(folder / "moved/a.txt", "onez");
  write_bytes(folder / "moved/b.txt", "wei");
  EXPECT_TRUE(tokenize("moved"));
  EXPECT_EQ(text_of(TokenShard(out)), "onez|wei|");
  // A shard that is not whole is replaced.
  std::filesystem::resize_file(out, 100);
  EXPECT_TRUE(tokenize("moved"));
  EXPECT_EQ(text_of(TokenShard(out)), "onez|wei|");
}

TEST(TokenizeFiles, NamesWhatItCannotUse) {
  TemporaryFolder folder;
  write_bytes(folder / "a.bin", std::string(10, '\0'));
  expect_contains(message_of<DataError>([&] { tokenize_files({folder / "a.bin"}, folder / "out.h5"); }),
                  (folder / "a.bin") + ": holds a NUL byte at 0, so it is not text; take it out");
  write_bytes(folder / "u.txt", "\xff\xfeh");
  expect_contains(message_of<DataError>([&] { tokenize_files({folder / "u.txt"}, folder / "out.h5"); }),
                  "is UTF-16, not UTF-8");
  write_bytes(folder / "g.txt", "\x1f\x8b\x08");
  expect_contains(message_of<DataError>([&] { tokenize_files({folder / "g.txt"}, folder / "out.h5"); }),
                  "is a gzip file, not text");
  write_bytes(folder / "p.parquet", std::string("PAR1\x15\0\x15", 7));
  expect_contains(message_of<DataError>([&] { tokenize_files({folder / "p.parquet"}, folder / "out.h5"); }),
                  "p.parquet: is a Parquet file");
  EXPECT_THROW(tokenize_files({}, folder / "out.h5"), DataError);
  expect_contains(message_of<DataError>([&] { tokenize_files({folder / "none.txt"}, folder / "out.h5"); }), "none.txt");
  write_bytes(folder / "a.txt", "text");
  expect_contains(message_of<IoError>([&] { tokenize_files({folder / "a.txt"}, folder / "none/out.h5"); }),
                  "none/out.h5");
  EXPECT_FALSE(std::filesystem::exists(folder / "out.h5"));
}

}  // namespace
}  // namespace braid
