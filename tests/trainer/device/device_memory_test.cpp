#include "trainer/device/device_memory.h"

#include <gtest/gtest.h>

#include "tests/messages.h"

namespace braid {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;

TEST(GpuMemoryCheck, RefusesWhatDoesNotFitWithTheTable) {
  MemoryEstimate needs;
  needs.weights = 30 * kGiB;
  needs.activations = 50 * kGiB + kGiB / 2;
  EXPECT_NO_THROW(check_gpu_memory(needs, {81 * kGiB, 140 * kGiB}, "NVIDIA H200"));
  EXPECT_NO_THROW(check_gpu_memory(needs, {80 * kGiB + kGiB / 2, 140 * kGiB}, "NVIDIA H200"));
  try {
    check_gpu_memory(needs, {80 * kGiB, 140 * kGiB}, "NVIDIA H200");
    FAIL();
  } catch (const OutOfMemoryError& e) {
    EXPECT_EQ(e.code(), ExitCode::kOutOfMemory);
    EXPECT_STREQ(e.what(),
                 "not enough GPU memory: 80.500 GiB are needed and 80.000 GiB of 140.000 GiB are free on this NVIDIA "
                 "H200; braid plan CONFIG says which settings need less\n"
                 "  weights                  30.000 GiB\n"
                 "  activations              50.500 GiB");
  }
}

TEST(HostMemoryCheck, RefusesOffloadedStateThatTheRanksOfAHostCannotHaveTogether) {
  const int64_t available = available_host_bytes();
  if (available == 0) GTEST_SKIP() << "this kernel does not say what is free";
  MemoryEstimate needs;
  needs.saving_on_host = available;
  EXPECT_NO_THROW(check_host_memory(needs, 8)) << "nothing is offloaded";
  needs.offloaded = available / 8;
  needs.saving_on_host = available / 8;
  EXPECT_NO_THROW(check_host_memory(needs, 1));
  const std::string message = braid::testing::message_of<OutOfMemoryError>([&] { check_host_memory(needs, 8); });
  EXPECT_TRUE(message.starts_with("memory.offload: " + gib_text(available / 8 * 2) + " of host memory")) << message;
  EXPECT_NE(message.find("for each of 8 ranks"), std::string::npos) << message;
}

}  // namespace
}  // namespace braid
