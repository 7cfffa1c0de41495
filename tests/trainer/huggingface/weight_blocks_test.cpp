#include "trainer/huggingface/weight_blocks.h"

#include <gtest/gtest.h>

namespace braid {
namespace {

using Files = std::vector<std::pair<size_t, size_t>>;

// Element i of every parameter is i.
class Counting final : public WeightSource {
 public:
  const std::string& path() const override { return path_; }
  void read_weights(const Parameter&, int64_t begin, int64_t end, Tensor out) const override {
    for (int64_t i = begin; i < end; ++i) out.data<float>()[i - begin] = static_cast<float>(i);
  }

 private:
  const std::string path_ = "counting";
};

TEST(ForEachBlock, HandsOutARangeInOrder) {
  const TypedParameter typed{{.name = "p", .shape = {3, 1 << 18}}, DType::kF32};
  for (const auto& [begin, end] : {std::pair{0, 3 << 18}, {5, (1 << 19) + 7}, {9, 10}, {4, 4}}) {
    int64_t at = begin, blocks = 0;
    for_each_block(Counting(), typed, begin, end, [&](const Tensor& block) {
      ASSERT_EQ(block.dtype(), DType::kF32);
      EXPECT_LE(block.bytes(), 1 << 20);
      for (int64_t i = 0; i < block.numel(); ++i) ASSERT_EQ(block.data<float>()[i], static_cast<float>(at++));
      ++blocks;
    });
    EXPECT_EQ(at, end);
    EXPECT_EQ(blocks, (end - begin + (1 << 18) - 1) / (1 << 18));
  }
}

TEST(DealToFiles, FillsFilesInOrder) {
  EXPECT_EQ(deal_to_files({}, 10), Files{});
  EXPECT_EQ(deal_to_files({4, 6}, 10), (Files{{0, 2}}));
  EXPECT_EQ(deal_to_files({4, 7}, 10), (Files{{0, 1}, {1, 2}}));
  EXPECT_EQ(deal_to_files({4, 6, 0, 1}, 10), (Files{{0, 3}, {3, 4}}));
  EXPECT_EQ(deal_to_files({1, 25, 1, 9, 1}, 10), (Files{{0, 1}, {1, 2}, {2, 4}, {4, 5}}));
}

}  // namespace
}  // namespace braid
