#include "data/batch.h"

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
  return batch;
}

TEST(CountTokens, CountsWhatTheLossesDivideBy) {
  const TokenCounts counts = count_tokens(example());
  EXPECT_EQ(counts.tokens, 9);
  EXPECT_EQ(counts.lm_targets, 6);   // 10 11 12, 20 21, 30
  EXPECT_EQ(counts.mtp_tokens, 5);   // 10 11 12, 20, 30
  EXPECT_EQ(counts.mtp_targets, 3);  // 10 11, and 20, whose next token 21 still has a target
}

TEST(ShiftForMtp, LooksOneTokenAheadInsideTheDocument) {
  const Batch batch = example();
  const MtpShift shift = shift_for_mtp(batch);
  constexpr int64_t E = 99;
  EXPECT_EQ(shift.next_tokens, (std::vector<int64_t>{11, 12, E, -1, 21, -1, E, -1, -1, -1, -1, -1}));
  EXPECT_EQ(shift.next_targets, (std::vector<int64_t>{12, E, -1, -1, 22, -1, -1, -1, -1, -1, -1, -1}));
  EXPECT_EQ(shift.segments.valid, (std::vector<uint8_t>{1, 1, 1, 0, 1, 0, 1, 0, 0, 0, 0, 0}));
  EXPECT_EQ(shift.segments.offsets, batch.segments.offsets);
  EXPECT_EQ(shift.segments.num_rows, 2);
  EXPECT_EQ(shift.segments.row_tokens, 6);
}

TEST(ShiftForMtp, AgreesWithTheCounts) {
  const Batch batch = example();
  const MtpShift shift = shift_for_mtp(batch);
  const TokenCounts counts = count_tokens(batch);
  int64_t targets = 0;
  for (int64_t target : shift.next_targets) targets += target >= 0;
  EXPECT_EQ(shift.segments.num_valid(), counts.mtp_tokens);
  EXPECT_EQ(targets, counts.mtp_targets);
}

TEST(CountTokens, HandlesABatchWithoutRows) {
  const TokenCounts counts = count_tokens(Batch{});
  EXPECT_EQ(counts.tokens + counts.lm_targets + counts.mtp_tokens + counts.mtp_targets, 0);
  EXPECT_TRUE(shift_for_mtp(Batch{}).next_tokens.empty());
}

}  // namespace
}  // namespace braid
