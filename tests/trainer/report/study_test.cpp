#include "trainer/report/study.h"

#include <cmath>
#include <limits>

#include "kernels/core/error.h"
#include "tests/file_testing.h"

namespace braid {
namespace {

StudyConfig two_axes() {
  StudyConfig study;
  study.config = "c.yaml";
  study.seeds = {1, 2};
  study.set = {"optimizer.lr=1e-3"};
  study.axes = {{"ratio", {{"3:1", {"a=1"}}, {"0:4", {"a=2"}}}}, {"scope", {{"x", {"b=1"}}, {"y", {"b=2"}}}}};
  return study;
}

StudyOutcome outcome(const std::string& variant, int64_t seed, const std::vector<double>& held_out,
                     const std::string& order) {
  StudyOutcome o;
  o.run.variant = variant;
  o.run.seed = seed;
  o.run.dir = variant + std::to_string(seed);
  o.data.data_order = order;
  for (size_t i = 0; i < held_out.size(); ++i) {
    const auto step = static_cast<int64_t>(i) + 1;
    o.data.held_out["d"].push_back({step, 100 * step, 0, held_out[i]});
    TrainPoint p;
    p.step = step, p.tokens_per_s = 1000;
    o.data.train.push_back(p);
  }
  o.largest_norm_weight = double(seed);
  return o;
}

TEST(Study, ExpandsToEveryCombinationWithEverySeed) {
  const auto runs = expand_study(two_axes(), "out");
  ASSERT_EQ(runs.size(), 8u);
  EXPECT_EQ(runs[0].variant, "ratio=3:1,scope=x");
  EXPECT_EQ(runs[1].seed, 2);
  EXPECT_EQ(runs[2].variant, "ratio=3:1,scope=y");
  EXPECT_EQ(runs[7].variant, "ratio=0:4,scope=y");
  EXPECT_EQ(runs[7].dir, "out/ratio-0-4_scope-y/seed-2");
  EXPECT_EQ(runs[7].overrides, (std::vector<std::string>{"optimizer.lr=1e-3", "a=2", "b=2", "train.seed=2",
                                                         "run.dir=\"out/ratio-0-4_scope-y/seed-2\""}));
}

TEST(Study, RunsTakeTheVisibleGpusInTurn) {
  EXPECT_EQ(gpu_of_slot(1, 4, nullptr), "1");
  EXPECT_EQ(gpu_of_slot(6, 4, nullptr), "2");
  EXPECT_EQ(gpu_of_slot(0, 2, "2,3"), "2");
  EXPECT_EQ(gpu_of_slot(3, 2, "2,3"), "3");
  EXPECT_EQ(gpu_of_slot(1, 2, "GPU-a1,GPU-b2"), "GPU-b2");
}

TEST(Study, ComparesVariantsSeedBySeed) {
  const auto results = compare_study({outcome("a", 1, {5, 3}, "o1"), outcome("a", 2, {5, 4}, "o2"),
                                      outcome("b", 1, {4, 2.5}, "o1"), outcome("b", 2, {5, 3.5}, "o2")});
  ASSERT_EQ(results.size(), 2u);
  EXPECT_EQ(results[1].loss, (std::vector<double>{2.5, 3.5}));
  EXPECT_EQ(results[1].difference, (std::vector<double>{-0.5, -0.5}));
  // Seed 1 reaches 3 at 100 + 100 * (4 - 3) / 1.5 tokens, seed 2 reaches 4 at 100 + 100 / 1.5.
  EXPECT_NEAR(results[1].tokens_to_base_loss, 100 + 200.0 / 3, 1e-9);
  EXPECT_EQ(results[0].tokens_to_base_loss, 200);
  EXPECT_EQ(results[0].tokens_per_s, 1000);
  EXPECT_EQ(results[0].largest_norm_weight, (std::vector<double>{1, 2}));
  const std::string table = study_table(results);
  testing::expect_contains(table, "3.0000");
  testing::expect_contains(table, "-0.5000 ± 0.0000");
}

TEST(Study, ShowsWhatLayersToldWhereRunsLogIt) {
  StudyOutcome on = outcome("on", 1, {3}, "o"), again = outcome("on", 2, {3}, "o2"), off = outcome("off", 1, {3}, "o");
  on.data.layer_numbers["hidden/max"] = 2;
  again.data.layer_numbers["hidden/max"] = 5;
  const auto results = compare_study({on, again, off});
  const std::string table = study_table(results), csv = study_results_as_csv(results);
  testing::expect_contains(table, "largest norm weight  hidden/max\n");
  testing::expect_contains(table, "3.5000\n");
  testing::expect_contains(
      csv,
      "tokens_per_s,largest_norm_weight,hidden/max,loss_seed_1,loss_seed_2,largest_norm_weight_seed_1,"
      "largest_norm_weight_seed_2,hidden/max_seed_1,hidden/max_seed_2\n");
  testing::expect_contains(csv, ",1000,1.5,3.5,3,3,1,2,2,5\n");
  testing::expect_contains(csv, ",1000,1,,3,,1,,,\n");
  testing::expect_contains(study_table_as_html({}, results), "<th>hidden/max</th></tr>");
  EXPECT_EQ(study_table(compare_study({off})).find("hidden"), std::string::npos);
}

TEST(Study, WritesNumbersUnderTheSeedOfTheirRun) {
  StudyOutcome first = outcome("a", 1, {3}, "o1"), second = outcome("a", 2, {4}, "o2"),
               third = outcome("a", 3, {5}, "o3");
  first.largest_norm_weight = std::numeric_limits<double>::quiet_NaN();  // without a checkpoint
  second.data.layer_numbers["x"] = 7;                                    // alone
  const std::string csv = study_results_as_csv(compare_study({first, second, third}));
  testing::expect_contains(csv, ",2.5,7,3,4,5,,2,3,,7,\n");
}

TEST(Study, SaysNothingOfTokensToALossThatIsNotReached) {
  const auto results = compare_study({outcome("a", 1, {5, 3}, "o"), outcome("b", 1, {5, 4}, "o")});
  EXPECT_TRUE(std::isnan(results[1].tokens_to_base_loss));
}

TEST(Study, RefusesRunsThatSawOtherRows) {
  const std::string message = testing::message_of<DataError>([] {
    compare_study({outcome("a", 1, {3}, "o1"), outcome("b", 1, {3}, "o2")});
  });
  testing::expect_contains(message, "a1 and b1 have the same seed");
  testing::expect_contains(message, "cannot be compared");
}

}  // namespace
}  // namespace braid
