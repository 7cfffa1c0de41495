#include "model/model_flop.h"

#include <gtest/gtest.h>

namespace braid {
namespace {

// Qwen3-Next-80B-A3B, forward multiply-adds per token counted by hand from its shapes (S = 4096):
//   36 Gated DeltaNet mixers 33,718,272 + 2,097,152, 12 attention mixers 27,262,976 + 16,777,216, 48 MoE blocks
//   35,653,632, head 311,164,928;  MTP: projection 8,388,608, attention mixer, MoE block, head.
TEST(ModelFlop, Of80BA3B) {
  MtpConfig off;
  off.depth = 0;
  EXPECT_NEAR(training_flop_per_token(ModelConfig{}, off, 4096) * 1e-9, 23.042, 5e-4);
  EXPECT_NEAR(training_flop_per_token(ModelConfig{}, MtpConfig{}, 4096) * 1e-9, 25.438, 5e-4);
  EXPECT_NEAR(training_flop_per_token(ModelConfig{}, off, 32768) * 1e-9, 31.498, 5e-4);
}

}  // namespace
}  // namespace braid
