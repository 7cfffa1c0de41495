#include "trainer/evaluation.h"

#include <cmath>
#include <map>

#include "kernels/core/temporary_folder.h"
#include "tests/model/tiny_model.h"

namespace braid {
namespace {

using namespace braid::testing;

constexpr int64_t kRowTokens = 8;

// Six rows: whole documents, two in a row, and one with padding.
class EvaluationTest : public ::testing::Test {
 protected:
  static std::string shard(const std::string& path) {
    TokenShardWriter writer(path, 11, 10, "test", "digest");
    uint64_t position = 0;
    for (int64_t length : {8, 8, 5, 3, 8, 6, 8}) {
      std::vector<uint32_t> tokens;
      while (std::ssize(tokens) + 1 < length) tokens.push_back(philox(3, 0, position++)[0] % 10);
      writer.add_document(tokens);
    }
    writer.close();
    return path;
  }
  Evaluation evaluate_in(int64_t micro_batch_size, int64_t sequences, const std::function<bool()>& leave = {}) {
    TinyModel m(tiny_model_config(), {.depth = 0}, {}, micro_batch_size, kRowTokens);
    const ProcessMesh mesh(make_local_communicator(), 1, m.config.num_experts);
    return evaluate(m.ctx, m.model, mesh, data_, micro_batch_size, sequences, {}, leave);
  }

  TemporaryFolder folder_;
  TokenDataset data_{"held out", {shard(folder_ / "a.h5")}, kRowTokens, Split::kTrain, 0};
};

TEST_F(EvaluationTest, IsTheMeanOverTheTargetsOfTheRowsThatWereAskedFor) {
  TinyModel one(tiny_model_config(), {.depth = 0}, {}, 1, kRowTokens);
  ASSERT_EQ(data_.size(), 6);
  double sum = 0;
  std::map<int64_t, int64_t> counts;
  int64_t targets = 0;
  for (int64_t row = 0; row < data_.size(); ++row) {
    Batch batch;
    data_.append_row(row, batch);
    batch.complete();
    one.model.forward(one.ctx, batch);
    sum += one.model.losses(one.ctx).lm;
    for (int64_t target : batch.targets)
      if (target >= 0) ++counts[target], ++targets;
    double entropy = 0;
    for (const auto& [id, count] : counts) entropy += double(count) / targets * std::log(double(targets) / count);

    for (int64_t micro_batch_size : {1, 2, 4}) {  // what is behind the last row is padding
      SCOPED_TRACE(concat(row + 1, " rows in micro-batches of ", micro_batch_size));
      const Evaluation e = evaluate_in(micro_batch_size, row + 1);
      EXPECT_TRUE(e.complete);
      EXPECT_EQ(e.targets, targets);
      EXPECT_NEAR(e.loss, sum / targets, 1e-12);
      EXPECT_NEAR(e.unigram_entropy, entropy, 1e-12);
    }
  }
  EXPECT_EQ(evaluate_in(4, 0).targets, targets) << "0 is all rows";
  EXPECT_EQ(evaluate_in(4, 100).targets, targets);
}

TEST_F(EvaluationTest, IsLeftBetweenTwoMicroBatches) {
  int64_t asked = 0;
  EXPECT_FALSE(evaluate_in(2, 0, [&] { return ++asked == 2; }).complete);
  EXPECT_EQ(asked, 2);
}

TEST(ValidationLine, LeavesOutWhatHasNoTargets) {
  EXPECT_EQ(validation_line(7, {{.name = "a", .loss = 0, .targets = 3}, {.name = "b"}}).to_json(),
            "{\"step\": 7, \"val/a/loss\": 0.0, \"val/a/ppl\": 1.0}");
}

}  // namespace
}  // namespace braid
