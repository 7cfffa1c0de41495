#include "kernels/core/batch.h"

#include <gtest/gtest.h>

namespace braid {
namespace {

// Two rows of six: [10 11 12 E | 20 21 (cut)] and [30 E | E2 (a lone token) | pad pad pad].
Batch example() {
  constexpr int64_t E = 99;
  Batch batch;
  batch.num_rows = 2;
  batch.row_tokens = 6;
  batch.tokens = {10, 11, 12, E, 20, 21, 30, E, E, E, E, E};
  batch.targets = {11, 12, E, -1, 21, 22, E, -1, -1, -1, -1, -1};
  batch.segments = {2, 6, {0, 4, 6, 8, 9, 12}, {1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0}};
  batch.complete();
  return batch;
}

TEST(Batch, CountsWhatTheLossesDivideBy) {
  const TokenCounts counts = example().counts;
  EXPECT_EQ(counts.tokens, 9);
  EXPECT_EQ(counts.lm_targets, 6);   // 10 11 12, 20 21, 30
  EXPECT_EQ(counts.mtp_tokens, 5);   // 10 11 12, 20, 30
  EXPECT_EQ(counts.mtp_targets, 3);  // 10 11, and 20, whose next token 21 still has a target
}

TEST(Batch, MtpViewLooksOneTokenAheadInsideTheDocument) {
  const Batch batch = example();
  const MtpView& mtp = batch.mtp;
  constexpr int64_t E = 99;
  EXPECT_EQ(mtp.tokens, (std::vector<int64_t>{11, 12, E, -1, 21, -1, E, -1, -1, -1, -1, -1}));
  EXPECT_EQ(mtp.targets, (std::vector<int64_t>{12, E, -1, -1, 22, -1, -1, -1, -1, -1, -1, -1}));
  EXPECT_EQ(mtp.segments.valid, (std::vector<uint8_t>{1, 1, 1, 0, 1, 0, 1, 0, 0, 0, 0, 0}));
  EXPECT_EQ(mtp.segments.offsets, batch.segments.offsets);
  EXPECT_EQ(mtp.segments.num_rows, 2);
  EXPECT_EQ(mtp.segments.row_tokens, 6);
}

TEST(Batch, MtpViewAgreesWithTheCounts) {
  const Batch batch = example();
  int64_t targets = 0;
  for (int64_t target : batch.mtp.targets) targets += target >= 0;
  EXPECT_EQ(batch.mtp.segments.num_valid(), batch.counts.mtp_tokens);
  EXPECT_EQ(targets, batch.counts.mtp_targets);
}

// Shares 0 and 1 of rows of 8: parts 0 and 3, and 1 and 2, of two tokens each.
//   row 0:  10 11 | 12 E  | 20 21 | 22 23    a document of four, and one that the row cuts
//   row 1:  30 31 | 32 33 | 34 E  | pad pad  one of six
TEST(Batch, AShareHoldsPartsOfEveryRowThatKnowWhatLiesBeyond) {
  constexpr int64_t E = 99;
  Batch batch;
  batch.num_rows = 2;
  batch.row_tokens = 8;
  batch.tokens = {10, 11, 12, E, 20, 21, 22, 23, 30, 31, 32, 33, 34, E, E, E};
  batch.targets = {11, 12, E, -1, 21, 22, 23, 24, 31, 32, 33, 34, E, -1, -1, -1};
  batch.segments = {2, 8, {0, 4, 8, 14, 16}, {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0}};
  batch.sources = {5, 3};
  batch.complete();
  const Batch first = share_of(batch, {2, 0}), second = share_of(batch, {2, 1});
  EXPECT_EQ(first.num_rows, 4);
  EXPECT_EQ(first.row_tokens, 2);
  EXPECT_EQ(first.tokens, (std::vector<int64_t>{10, 11, 22, 23, 30, 31, E, E}));
  EXPECT_EQ(second.tokens, (std::vector<int64_t>{12, E, 20, 21, 32, 33, 34, E}));
  EXPECT_EQ(first.targets, (std::vector<int64_t>{11, 12, 23, 24, 31, 32, -1, -1}));
  EXPECT_EQ(second.mtp.tokens, (std::vector<int64_t>{E, -1, 21, 22, 33, 34, E, -1}));  // across the borders of parts
  EXPECT_EQ(second.mtp.targets, (std::vector<int64_t>{-1, -1, 22, 23, 34, E, -1, -1}));
  EXPECT_EQ(first.segments.offsets, (std::vector<int64_t>{0, 2, 4, 6, 8}));
  EXPECT_EQ(first.segments.tokens_before, (std::vector<int64_t>{0, 2, 0, 0}));
  EXPECT_EQ(first.segments.tokens_behind, (std::vector<int64_t>{2, 0, 4, 0}));
  EXPECT_EQ(second.segments.tokens_before, (std::vector<int64_t>{2, 0, 2, 4}));
  EXPECT_EQ(second.segments.tokens_behind, (std::vector<int64_t>{0, 2, 2, 0}));
  EXPECT_EQ(first.segments.valid, (std::vector<uint8_t>{1, 1, 1, 1, 1, 1, 0, 0}));
  EXPECT_EQ(second.mtp.segments.tokens_before, second.segments.tokens_before);
  EXPECT_EQ(first.sources, (std::vector<int64_t>{5, 5, 3, 3}));
  TokenCounts counts = first.counts;
  counts += second.counts;
  EXPECT_EQ(counts.tokens, batch.counts.tokens);
  EXPECT_EQ(counts.lm_targets, batch.counts.lm_targets);
  EXPECT_EQ(counts.mtp_tokens, batch.counts.mtp_tokens);
  EXPECT_EQ(counts.mtp_targets, batch.counts.mtp_targets);
  EXPECT_EQ(share_of(batch, {1, 0}).tokens, batch.tokens);
  EXPECT_THROW(share_of(batch, {3, 0}), ShapeError);
}

TEST(Batch, ADocumentThatBeginsInAPartCutsIt) {
  Batch batch;
  batch.num_rows = 1;
  batch.row_tokens = 12;
  batch.tokens.assign(12, 1);
  batch.targets.assign(12, -1);
  batch.segments = Segments::packed({4, 3, 5});
  batch.complete();
  const Segments second = share_of(batch, {2, 1}).segments;  // tokens 3 to 8
  EXPECT_EQ(second.offsets, (std::vector<int64_t>{0, 1, 3, 4, 6}));
  EXPECT_EQ(second.tokens_before, (std::vector<int64_t>{3, 2}));
  EXPECT_EQ(second.tokens_behind, (std::vector<int64_t>{1, 3}));
}

TEST(Batch, CompletesAnewWhenTokensChange) {
  Batch batch = example();
  batch.tokens[1] = 7;
  batch.complete();
  EXPECT_EQ(batch.mtp.tokens[0], 7);
  EXPECT_EQ(batch.counts.tokens, 9);
}

TEST(Batch, CompletesWithoutRows) {
  Batch batch;
  batch.complete();
  EXPECT_EQ(batch.counts.tokens + batch.counts.lm_targets + batch.counts.mtp_tokens + batch.counts.mtp_targets, 0);
  EXPECT_TRUE(batch.mtp.tokens.empty());
}

}  // namespace
}  // namespace braid
