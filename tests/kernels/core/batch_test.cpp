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
