#include <set>

#include "kernels/core/copy.h"
#include "kernels/random.h"
#include "tests/kernels/cases_testing.h"
#include "tests/kernels/cuda/competing_stream.h"
#include "tests/kernels/cuda/cuda_testing.h"

namespace braid::cases {
namespace {

using namespace braid::testing;

class RepeatedCuda : public ::testing::Test {
 protected:
  static constexpr int64_t kSpoiltBytes = int64_t{64} << 20;

  void SetUp() override {
    if (!gpu_context()) GTEST_SKIP() << "there is no GPU here";
  }

  // Of what each run of `body` writes.
  std::vector<int64_t> hashes_of(const std::vector<Tensor>& written, int repeats,
                                 const std::function<void(int turn)>& body) {
    const std::shared_ptr<std::byte> block = allocate_memory(Device::kCuda, repeats * 8);
    Tensor hashes(block.get(), DType::kI64, {repeats}, Device::kCuda);
    for (int i = 0; i < repeats; ++i) {
      spoil_scratch(gpu, kSpoiltBytes, i * 37 & 255);
      body(i);
      hash_on_gpu(gpu, hashes.rows(i, i + 1), written);
    }
    std::vector<int64_t> host(static_cast<size_t>(repeats));
    Tensor on_host = Tensor::of(host.data(), {repeats});
    copy(gpu, on_host, hashes);
    return host;
  }

  // Of all that each step of the variant writes, while scratch memory holds something else each time.
  void expect_one_hash(const Variant& variant, DType activation, int repeats) {
    Trial t = Trial::of(gpu, activation);
    variant.declare(t);
    t.run();
    for (const Trial::Step& step : t.steps()) {
      const std::vector<Tensor> written(step.writes.begin(), step.writes.end());
      const std::vector<int64_t> hashes = hashes_of(written, repeats, [&](int) { t.run(step); });
      const size_t different = std::set<int64_t>(hashes.begin(), hashes.end()).size();
      EXPECT_EQ(different, 1u) << step.op << " (" << name_of(activation) << ", " << variant.label << ") gave "
                               << different << " different results in " << repeats << " runs";
    }
  }

  Context& gpu = *gpu_context();
};

// Another stream keeps the GPU busy meanwhile.
class DeterminismCuda : public RepeatedCuda {
 protected:
  static constexpr int kRepeats = 100;

  void SetUp() override {
    RepeatedCuda::SetUp();
    if (!IsSkipped()) competitor_ = std::make_unique<CompetingStream>(gpu);
  }
  void TearDown() override {
    if (!competitor_) return;
    gpu.synchronize();
    EXPECT_GT(competitor_->turns(), 0) << "nothing competed";
  }

 private:
  std::unique_ptr<CompetingStream> competitor_;
};

class LargeCuda : public DeterminismCuda, public ::testing::WithParamInterface<const OperatorCase*> {};
class HardCuda : public RepeatedCuda, public ::testing::WithParamInterface<const OperatorCase*> {};
BRAID_FOR_EACH_CASE(LargeCuda);
BRAID_FOR_EACH_CASE(HardCuda);

// What the other tests stand on: the hash sees one bit, and where it is; two tensors changing places change it.
TEST_F(DeterminismCuda, HashSeesEveryBit) {
  Trial t = Trial::of(gpu, DType::kF32);
  const Var x = t.in_out("x", {1000, 3}, normal()), y = t.input("y", {1000, 3}, normal());
  const int64_t xy = hashes_of({x, y}, 1, [](int) {})[0];
  EXPECT_NE(hashes_of({y, x}, 1, [](int) {})[0], xy);
  EXPECT_EQ(hashes_of({x, y}, 1, [](int) {})[0], xy);
  copy(gpu, x.rows(999, 1000), x.rows(0, 1));
  EXPECT_NE(hashes_of({x, y}, 1, [](int) {})[0], xy);
}

// One run of a hundred that differs, and scratch that is read before it is written, are seen.
TEST_F(DeterminismCuda, NoticesWhatDiffers) {
  Trial t = Trial::of(gpu, DType::kF32);
  const Var x = t.output("x", {100000});
  const std::vector<int64_t> hashes =
      hashes_of({x}, kRepeats, [&](int turn) { fill_normal(gpu, x, 0, 1, turn == 56 ? 1 : 2, 0, 0); });
  EXPECT_EQ(std::set<int64_t>(hashes.begin(), hashes.end()).size(), 2u);
  EXPECT_NE(hashes[56], hashes[0]);
  const std::vector<int64_t> unwritten = hashes_of({x}, kRepeats, [&](int) {
    Scratch scratch(gpu);
    copy(gpu, x, scratch.tensor(x.shape(), x.dtype()));
  });
  EXPECT_GT(std::set<int64_t>(unwritten.begin(), unwritten.end()).size(), 50u);
}

// The released model's sizes where kernels depend on them, then others that only general kernels serve; documents of
// many lengths, around the sizes of chunks and tiles.
Sizes large() {
  Sizes s;
  s.rows = 4, s.row_tokens = 1024, s.hidden = 2048, s.vocabulary = 5003;
  s.experts = s.local_experts = 24, s.experts_per_token = 4, s.expert_width = s.shared_width = 512, s.mtp = true;
  s.gdn = GdnDims{8, 16, 128, 128, 4}, s.attention = AttentionDims{8, 2, 256, 64, 1e7, 1e-6};
  for (int64_t i = 0; i < 40; ++i) s.documents.insert(s.documents.end(), {1, 63, 64, 65 + i, 3 * i + 2, 127});
  s.shard_elements = (1 << 21) + 5, s.product_size = 1536, s.copy_bytes = 1 << 24;
  return s;
}
Sizes odd() {
  Sizes s = large();
  s.hidden = 333, s.vocabulary = 1001, s.experts = s.local_experts = 512, s.experts_per_token = 10;
  s.expert_width = 136, s.shared_width = 37, s.product_size = 500;
  s.gdn = GdnDims{2, 4, 24, 40, 6}, s.attention = AttentionDims{4, 2, 48, 16, 1e4, 1e-6};
  return s;
}

TEST_P(LargeCuda, HundredRunsHaveOneHash) {
  for (DType activation : {DType::kF32, DType::kBF16})
    for (const Sizes& sizes : {large(), odd()})
      for (const Variant& variant : GetParam()->timed(sizes)) expect_one_hash(variant, activation, kRepeats);
}

TEST_P(HardCuda, FiveRunsHaveOneHash) {
  for (DType activation : {DType::kF32, DType::kBF16})
    for (const Variant& variant : GetParam()->hard()) expect_one_hash(variant, activation, 5);
}

}  // namespace
}  // namespace braid::cases
