#include "trainer/device/device_memory.h"

#include <gtest/gtest.h>

namespace braid {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;

TEST(GpuMemoryCheck, RefusesWhatDoesNotFitWithTheTable) {
  const std::vector<MemoryNeed> needs = {{"weights", 30 * kGiB}, {"activations", 50 * kGiB + kGiB / 2}};
  EXPECT_NO_THROW(check_gpu_memory(needs, {81 * kGiB, 140 * kGiB}, "NVIDIA H200"));
  EXPECT_NO_THROW(check_gpu_memory(needs, {80 * kGiB + kGiB / 2, 140 * kGiB}, "NVIDIA H200"));
  try {
    check_gpu_memory(needs, {80 * kGiB, 140 * kGiB}, "NVIDIA H200");
    FAIL();
  } catch (const OutOfMemoryError& e) {
    EXPECT_EQ(e.code(), ExitCode::kOutOfMemory);
    EXPECT_STREQ(e.what(),
                 "not enough GPU memory: 80.500 GiB are needed and 80.000 GiB of 140.000 GiB are free on this NVIDIA "
                 "H200; lower train.micro_batch_size or train.seq_length, or share the model between more ranks\n"
                 "  weights                  30.000 GiB\n"
                 "  activations              50.500 GiB");
  }
}

// Grows with what is computed at a time, and is of the size that one GPU's slice of the released model has.
TEST(ScratchBound, FollowsTheBatch) {
  RunConfig config;
  config.precision = Precision::kBf16;
  config.mtp.depth = 0;
  config.train.micro_batch_size = 8;
  config.train.seq_length = 4096;
  const int64_t rows = 8 * 4096 * config.model.num_experts_per_tok;
  const int64_t bound = scratch_bound_bytes(config, rows);
  EXPECT_GT(bound, 2 * rows * config.model.hidden_size * 2 + 3 * rows * config.model.moe_intermediate_size * 2);
  EXPECT_LT(bound, 8 * kGiB);
  EXPECT_GT(scratch_bound_bytes(config, 2 * rows), bound + bound / 2);
  config.train.micro_batch_size = 1;
  EXPECT_LT(scratch_bound_bytes(config, rows / 8), bound / 2);
}

}  // namespace
}  // namespace braid
