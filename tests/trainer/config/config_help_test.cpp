#include "trainer/config/config_help.h"

#include <nlohmann/json.hpp>

#include "kernels/core/error.h"
#include "tests/file_testing.h"
#include "trainer/config/config.h"
#include "trainer/config/config_visit.h"
#include "trainer/config/study_config.h"

namespace braid {
namespace {

using testing::expect_contains;
using testing::message_of;

TEST(ExplainKey, SaysMeaningTypeDefaultAndWhatOthersCallIt) {
  const std::string text = explain_key("optimizer.lr");
  expect_contains(text, "optimizer.lr: peak learning rate");
  expect_contains(text, "a number; default 3.0e-4");
  expect_contains(text, "others call it learning_rate");
  expect_contains(explain_key("balance.scope"), "one of micro_batch, sequence, global_batch; default");
  expect_contains(explain_key("log.tensorboard"), "true or false; default false");
}

TEST(ExplainKey, TakesANameThatStandsInOnePlaceAlone) {
  EXPECT_EQ(explain_key("global_batch_size"), explain_key("train.global_batch_size"));
  expect_contains(explain_key("interval_steps"), "eval.interval_steps");
  expect_contains(explain_key("interval_steps"), "checkpoint.interval_steps");
}

TEST(ExplainKey, ListsTheKeysOfASection) {
  expect_contains(explain_key("schedule"), "schedule.warmup_steps: ");
  expect_contains(explain_key("data.sources"), "data.sources[].weight: ");
  EXPECT_EQ(explain_key("data.sources.name"), explain_key("data.sources[].name"));
}

TEST(ExplainKey, AnswersWhatIsNoKey) {
  expect_contains(message_of<ConfigError>([] { explain_key("optimizer.lrr"); }), "did you mean lr?");
  expect_contains(message_of<ConfigError>([] { explain_key("train_iters"); }), "here it is called run.steps");
  expect_contains(message_of<ConfigError>([] { explain_key("dropout"); }), "there is no dropout");
  expect_contains(message_of<ConfigError>([] { explain_key("optimiser.lr"); }), "did you mean optimizer?");
  expect_contains(message_of<ConfigError>([] { explain_key("training.local_batch_size"); }),
                  "here it is called train.micro_batch_size");
}

TEST(ExplainKey, FindsKeysByAPartOfTheirName) {
  expect_contains(message_of<ConfigError>([] { explain_key("vocab"); }), "did you mean model.vocab_size or ");
  expect_contains(message_of<ConfigError>([] { explain_key("train.global_batch"); }),
                  "did you mean global_batch_size?");
  expect_contains(message_of<ConfigError>([] { explain_key("num_heads"); }),
                  "did you mean model.num_attention_heads or model.num_key_value_heads");
  expect_contains(message_of<ConfigError>([] { explain_key("a_b"); }), "known here: run, ");
}

TEST(ConfigSchema, HasEveryKeyAndNoOther) {
  const auto schema = nlohmann::json::parse(config_schema());
  RunConfig config;
  int keys = 0;
  visit_keys(config, "", [&](const std::string& dotted, auto&, const char*) {
    const nlohmann::json* at = &schema;
    for (size_t begin = 0; begin <= dotted.size();) {
      const size_t end = std::min(dotted.find('.', begin), dotted.size());
      ASSERT_TRUE(at->at("properties").contains(dotted.substr(begin, end - begin))) << dotted;
      at = &at->at("properties").at(dotted.substr(begin, end - begin));
      begin = end + 1;
    }
    ++keys;
  });
  EXPECT_GT(keys, 80);
  EXPECT_FALSE(schema.at("properties").at("train").at("additionalProperties"));
  EXPECT_EQ(schema.at("properties").at("balance").at("properties").at("scope").at("enum").size(), 3u);
  EXPECT_EQ(schema.at("properties").at("data").at("properties").at("sources").at("items").at("type"), "object");
}

TEST(StudySchema, HasEveryKeyAndAsksForThoseThatTheReaderDoes) {
  using Names = std::vector<std::string>;
  const auto schema = nlohmann::json::parse(study_schema());
  EXPECT_EQ(schema.at("required").get<Names>(), (Names{"config", "seeds", "axes"}));
  const nlohmann::json* at = &schema;
  const auto has_keys_of = [&](auto section) {
    section.visit([&](const char* key, auto&, const char*) { EXPECT_TRUE(at->at("properties").contains(key)) << key; });
    EXPECT_FALSE(at->at("additionalProperties"));
  };
  has_keys_of(StudyConfig());
  at = &schema.at("properties").at("axes").at("items");
  has_keys_of(AxisConfig());
  EXPECT_EQ(at->at("required").get<Names>(), (Names{"name", "variants"}));
  at = &at->at("properties").at("variants").at("items");
  has_keys_of(VariantConfig());
  EXPECT_EQ(at->at("properties").at("set").at("items").at("type"), "string");
}

}  // namespace
}  // namespace braid
