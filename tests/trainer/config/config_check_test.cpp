#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <set>

#include "tests/messages.h"
#include "trainer/config/config_reader.h"
#include "trainer/config/config_visit.h"

namespace braid {
namespace {

using namespace braid::testing;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN(), kInf = std::numeric_limits<double>::infinity();

RunConfig valid_config() {
  RunConfig c;
  c.run = {"runs/x", 100};
  c.train = {2, 8, 64, 1};
  c.data.sources = {{{"a", "", {"/data/a.h5"}, {}}, 1, {}, 0}, {{"b", "", {}, {"/data/b.txt"}}, 2, {}, 0}};
  return c;
}

std::set<std::string> schema_keys() {
  RunConfig config;
  SourceConfig source;
  std::set<std::string> keys;
  const auto insert = [&](const std::string& dotted, auto&, const char*) { keys.insert(dotted); };
  visit_keys(config, "", insert);
  visit_keys(source, "data.sources[]", insert);
  WeightChange change;
  visit_keys(change, "data.sources[].weight_changes[]", insert);
  LeftOutConfig left_out;
  visit_keys(left_out, "data.left_out[]", insert);
  TokenFiles set;
  visit_keys(set, "data.validation_sets[]", insert);
  return keys;
}

// The key that a message starts with, without list positions: "data.sources[1].name is ..." -> data.sources[].name
std::string key_of(const std::string& message) {
  std::string key;
  for (const char c : message.substr(0, message.find(' ')))
    if (c < '0' || c > '9' || key.empty() || key.back() != '[') key += c;
  return key;
}

struct BadValue {
  std::function<void(RunConfig&)> set;
  std::string message_start;
};

void expect_refused(const std::vector<BadValue>& table, void (*check)(const RunConfig&)) {
  const std::set<std::string> keys = schema_keys();
  for (const BadValue& bad : table) {
    RunConfig config = valid_config();
    bad.set(config);
    const std::string message = message_of<ConfigError>([&] { check(config); });
    EXPECT_TRUE(message.starts_with(bad.message_start)) << "expected: " << bad.message_start << "\ngot: " << message;
    EXPECT_TRUE(keys.contains(key_of(message)) || key_of(message) == "data.sources[]" ||
                key_of(message) == "data.sources:" || key_of(message) == "data.validation_sets[]")
        << message;
  }
}

TEST(CheckConfig, AcceptsAWholeRunAndTheModelAlone) {
  EXPECT_EQ(message_of<ConfigError>([] { check_config(valid_config()); }), "");
  EXPECT_EQ(message_of<ConfigError>([] { check_model_config(RunConfig()); }), "");
  RunConfig slow = valid_config();
  slow.allow_slow = {"attention", "gated_delta_rule"};
  EXPECT_EQ(message_of<ConfigError>([&] { check_config(slow); }), "");
}

TEST(CheckModelConfig, RefusesWhatTheModelCannotBe) {
  const std::vector<BadValue> table = {
      {[](RunConfig& c) { c.model.num_attention_heads = 15; },
       "model.num_attention_heads is 15, but must be a multiple of model.num_key_value_heads, 2; nearest: 12, 14, 16"},
      {[](RunConfig& c) { c.model.linear_num_value_heads = 8; },
       "model.linear_num_value_heads is 8, but must be a multiple of model.linear_num_key_heads, 16; nearest: 16"},
      {[](RunConfig& c) { c.model.partial_rotary_factor = 1.5; },
       "model.partial_rotary_factor is 1.5, but must be gre"},
      {[](RunConfig& c) { c.model.partial_rotary_factor = 0; }, "model.partial_rotary_factor is 0, but"},
      {[](RunConfig& c) { c.model.partial_rotary_factor = kNan; }, "model.partial_rotary_factor is nan, but"},
      {[](RunConfig& c) { c.model.head_dim = 36; },
       "model.partial_rotary_factor is 0.25, but must make an even number, at least 2, of the 36 dimensions of a head "
       "rotate, not 9"},
      {[](RunConfig& c) { c.model.head_dim = 4; }, "model.partial_rotary_factor is 0.25, but must make an even"},
      {[](RunConfig& c) { c.model.rope_theta = 0; }, "model.rope_theta is 0, but must be greater than 0"},
      {[](RunConfig& c) { c.model.rope_theta = kInf; }, "model.rope_theta is inf, but"},
      {[](RunConfig& c) { c.model.rope_parameters.factor = 4; },
       "model.rope_parameters.factor is 4, but is for model.rope_parameters.rope_type linear or yarn"},
      {[](RunConfig& c) {
         c.model.rope_parameters = {RopeType::kLinear, 0.5};
       },
       "model.rope_parameters.factor is 0.5, but must be at least 1"},
      {[](RunConfig& c) { c.model.rope_parameters = {RopeType::kYarn, 4, 0, 0, 1, 2}; },
       "model.rope_parameters.beta_fast is 1, but must be at least model.rope_parameters.beta_slow, 2"},
      {[](RunConfig& c) {
         c.model.rope_parameters = {RopeType::kYarn, 4, 0, -1};
       },
       "model.rope_parameters.attention_factor is -1, but must be at least 0"},
      {[](RunConfig& c) { c.model.rope_parameters.rope_type = RopeType::kYarn, c.model.rope_theta = 0.5; },
       "model.rope_theta is 0.5, but must be greater than 1 for yarn"},
      {[](RunConfig& c) { c.model.rms_norm_eps = -1e-6; }, "model.rms_norm_eps is -1.0e-6, but"},
      {[](RunConfig& c) { c.model.initializer_range = 0; }, "model.initializer_range is 0, but"},
      {[](RunConfig& c) { c.model.num_experts_per_tok = 513; },
       "model.num_experts_per_tok is 513, but must be at most model.num_experts, 512"},
      {[](RunConfig& c) { c.model.layer_types = {LayerType::kFullAttention}; },
       "model.layer_types is [full_attention], but must name model.num_hidden_layers types, 48, not 1"},
      {[](RunConfig& c) { c.model.hidden_act = "gelu"; }, "model.hidden_act is gelu, but only silu is supported"},
      {[](RunConfig& c) { c.model.attention_bias = true; }, "model.attention_bias is true, but only false"},
      {[](RunConfig& c) { c.model.attention_dropout = 0.1; }, "model.attention_dropout is 0.1, but only 0"},
      {[](RunConfig& c) { c.model.tie_word_embeddings = true; }, "model.tie_word_embeddings is true, but only false"},
      {[](RunConfig& c) { c.mtp.depth = 2; }, "mtp.depth is 2, but must be 0 or 1"},
      {[](RunConfig& c) { c.mtp.depth = -1; }, "mtp.depth is -1, but"},
      {[](RunConfig& c) { c.mtp.loss_weight = -0.1; }, "mtp.loss_weight is -0.1, but must be at least 0"},
      {[](RunConfig& c) { c.balance.loss_weight = kNan; }, "balance.loss_weight is nan, but"},
      {[](RunConfig& c) { c.balance.z_loss_weight = -1; }, "balance.z_loss_weight is -1, but"},
      {[](RunConfig& c) {
         c.allow_slow = {"attention", "softmax"};
       },
       "allow_slow is softmax, but is no operator; there are matmul, embedding, "},
  };
  expect_refused(table, check_model_config);
  expect_refused(table, check_config);
}

TEST(CheckModelConfig, HoldsEveryIntegerOfTheModelToItsRange) {
  RunConfig names;
  visit_keys(names.model, "model", [](const std::string& key, auto& value, const char*) {
    if constexpr (std::is_same_v<decltype(value), int64_t&>) {
      const int least = key.ends_with(".original_max_position_embeddings") ? 0 : 1;  // 0: of another key
      for (int64_t bad : {int64_t{least} - 1, int64_t{-1}, int64_t{1} << 31, std::numeric_limits<int64_t>::min()}) {
        RunConfig config;
        visit_keys(config.model, "model", [&](const std::string& other, auto& slot, const char*) {
          if constexpr (std::is_same_v<decltype(slot), int64_t&>)
            if (other == key) slot = bad;
        });
        EXPECT_EQ(message_of<ConfigError>([&] { check_model_config(config); }),
                  concat(key, " is ", bad, ", but must be within ", least, " and 2147483647"));
      }
    }
  });
}

TEST(CheckConfig, RefusesWhatARunCannotBe) {
  expect_refused(
      {
          {[](RunConfig& c) { c.run.dir = ""; }, "run.dir is not set"},
          {[](RunConfig& c) { c.run.steps = 0; }, "run.steps is 0, but must be within 1 and"},
          {[](RunConfig& c) { c.precision = Precision::kBf16, c.device = DeviceChoice::kCpu; },
           "precision is bf16, but the CPU computes in fp32 or fp64 only"},
          {[](RunConfig& c) { c.precision = Precision::kFp64, c.device = DeviceChoice::kCuda; },
           "precision is fp64, but a GPU computes"},
          {[](RunConfig& c) { c.parallel.expert = 0; }, "parallel.expert is 0, but must be within 1 and"},
          {[](RunConfig& c) { c.parallel.context = 0; }, "parallel.context is 0, but must be within 1 and"},
          {[](RunConfig& c) { c.parallel.context = 2, c.train.seq_length = 66; },
           "parallel.context is 2, but cuts rows into 4 equal parts of at least 3 tokens, but train.seq_length is 66"},
          {[](RunConfig& c) {
             c.parallel.context = 2, c.train.seq_length = 64, c.balance.scope = BalanceScope::kSequence;
           },
           "parallel.context is 2, but needs balance.scope global_batch"},
          {[](RunConfig& c) { c.parallel.max_rows_factor = -0.5; },
           "parallel.max_rows_factor is -0.5, but must be 0 or"},
          {[](RunConfig& c) { c.parallel.max_rows_factor = kInf; }, "parallel.max_rows_factor is inf, but"},
          {[](RunConfig& c) { c.train.micro_batch_size = 0; }, "train.micro_batch_size is 0, but"},
          {[](RunConfig& c) { c.train.global_batch_size = -8; }, "train.global_batch_size is -8, but"},
          {[](RunConfig& c) { c.train.micro_batch_size = 3; },
           "train.global_batch_size is 8, but must be a multiple of train.micro_batch_size, 3; nearest: 6, 9, 12"},
          {[](RunConfig& c) { c.train.seq_length = 1; }, "train.seq_length is 1, but must be within 2 and"},
          {[](RunConfig& c) { c.train.seq_length = 262145; },
           "train.seq_length is 262145, but must be at most model.max_position_embeddings, 262144"},
          {[](RunConfig& c) { c.train.seq_length = 131072, c.train.micro_batch_size = c.train.global_batch_size = 65; },
           "train.micro_batch_size is 65, but times train.seq_length 131072 are more tokens than 8388608"},
          {[](RunConfig& c) { c.train.seed = -1; }, "train.seed is -1, but must be at least 0"},
          {[](RunConfig& c) { c.run.steps = c.train.global_batch_size = 2147483646; }, "run.steps is 2147483646, but"},
          {[](RunConfig& c) { c.optimizer.lr = -1; }, "optimizer.lr is -1, but must be at least 0"},
          {[](RunConfig& c) { c.optimizer.lr = kInf; }, "optimizer.lr is inf, but"},
          {[](RunConfig& c) { c.optimizer.beta1 = 1; }, "optimizer.beta1 is 1, but must be at least 0 and less than 1"},
          {[](RunConfig& c) { c.parallel.bucket_elements = -1; }, "parallel.bucket_elements is -1, but"},
          {[](RunConfig& c) {
             c.optimizer.beta2 = 0.9995;
             c.optimizer.moment_dtype = MomentDType::kBf16;
           },
           "optimizer.beta2 is 0.9995, but must be at most 0.999"},
          {[](RunConfig& c) { c.optimizer.gradient_dtype = GradientDType::kBf16; },
           "optimizer.gradient_dtype is bf16, but needs precision: bf16; gradients of products in fp32 are as wide"},
          {[](RunConfig& c) {
             c.optimizer.muon_momentum = 0.995;
             c.optimizer.moment_dtype = MomentDType::kBf16;
           },
           "optimizer.muon_momentum is 0.995, but must be at most 0.99"},
          {[](RunConfig& c) {
             c.optimizer.beta2 = 0.9995;
             c.optimizer.moment_dtype = MomentDType::kInt8;
           },
           "optimizer.beta2 is 0.9995, but must be at most 0.999 where moments are stored in int8"},
          {[](RunConfig& c) {
             c.optimizer.kind = OptimizerKind::kMuon;
             c.optimizer.moment_dtype = MomentDType::kInt8;
           },
           "optimizer.moment_dtype is int8, but is of optimizer.kind adamw"},
          {[](RunConfig& c) {
             c.optimizer.beta1 = 0.98;
             c.optimizer.moment_dtype = MomentDType::kInt8;
           },
           "optimizer.beta1 is 0.98, but must be at most 0.95"},
          {[](RunConfig& c) {
             c.optimizer.moment_dtype = MomentDType::kInt8;
             c.model.moe_intermediate_size = 24, c.model.hidden_size = 200;
           },
           "optimizer.moment_dtype is int8, but cuts moments in blocks of 128, and an expert's matrix of "
           "model.moe_intermediate_size x model.hidden_size, 24 x 200, ends inside one"},
          {[](RunConfig& c) { c.model.hidden_size = 2'000'000'000; },
           "model.hidden_size is 2000000000, but makes, with the other sizes, more than 10000000000000 parameters"},
          {[](RunConfig& c) { c.memory.recompute_further = -1; },
           "memory.recompute_further is -1, but must be within 0"},
          {[](RunConfig& c) { c.memory.recompute = Recompute::kMoe, c.memory.recompute_further = 50; },
           "memory.recompute_further is 50, but there are 4"},
          {[](RunConfig& c) { c.memory.offload = Offload::kOptimizer, c.optimizer.kind = OptimizerKind::kMuon; },
           "memory.offload is optimizer, but needs optimizer.kind adamw"},
          {[](RunConfig& c) { c.memory.offload = Offload::kOptimizer, c.memory.offload_share = 0; },
           "memory.offload_share is 0, but must be more than 0 and at most 1"},
          {[](RunConfig& c) { c.memory.offload_share = 0.5; },
           "memory.offload_share is 0.5, but says nothing without memory.offload"},
          {[](RunConfig& c) { c.memory.recompute = Recompute::kLayer, c.memory.recompute_further = 1; },
           "memory.recompute_further is 1, but must be 0 beside memory.recompute layer"},
          {[](RunConfig& c) { c.optimizer.muon_momentum = 1; }, "optimizer.muon_momentum is 1, but"},
          {[](RunConfig& c) { c.optimizer.muon_update_rms = 0; },
           "optimizer.muon_update_rms is 0, but must be greater than 0"},
          {[](RunConfig& c) { c.optimizer.beta2 = -0.5; }, "optimizer.beta2 is -0.5, but"},
          {[](RunConfig& c) { c.optimizer.eps = 0; }, "optimizer.eps is 0, but must be greater than 0"},
          {[](RunConfig& c) { c.optimizer.weight_decay = kNan; }, "optimizer.weight_decay is nan, but"},
          {[](RunConfig& c) { c.optimizer.max_grad_norm = -1; }, "optimizer.max_grad_norm is -1, but"},
          {[](RunConfig& c) { c.schedule.warmup_steps = -1; }, "schedule.warmup_steps is -1, but"},
          {[](RunConfig& c) { c.schedule.decay_steps = -1; }, "schedule.decay_steps is -1, but"},
          {[](RunConfig& c) { c.schedule.warmup_steps = c.schedule.decay_steps = 10; },
           "schedule.decay_steps is 10, but must be 0 or greater than schedule.warmup_steps, 10"},
          {[](RunConfig& c) { c.schedule.min_lr_ratio = 1.1; }, "schedule.min_lr_ratio is 1.1, but"},
          {[](RunConfig& c) { c.data.sources.clear(); }, "data.sources is empty, but a run needs at least one source"},
          {[](RunConfig& c) { c.data.sources[1].name = "a"; }, "data.sources[1].name is a, but another source has"},
          {[](RunConfig& c) { c.data.sources[0].name = "a/b"; },
           "data.sources[0].name is a/b, but must be one or more"},
          {[](RunConfig& c) { c.data.sources[0].name = std::string(101, 'n'); },
           "data.sources[0].name is " + std::string(101, 'n') + ", but must be at most 100 characters long"},
          {[](RunConfig& c) { c.data.sources[0].name = ""; }, "data.sources[0].name is \"\", but must be one or more"},
          {[](RunConfig& c) { c.data.sources[0].text = {"x"}; },
           "data.sources[0] (a) must have one of dataset, shards and text, but has 2"},
          {[](RunConfig& c) { c.data.sources[1].text.clear(); },
           "data.sources[1] (b) must have one of dataset, shards and text, but has none"},
          {[](RunConfig& c) { c.data.sources[0].shards[0] = ""; }, "data.sources[0].shards is \"\", but is no path"},
          {[](RunConfig& c) { c.data.sources[1].text[0] = ""; }, "data.sources[1].text is \"\", but is no path"},
          {[](RunConfig& c) { c.data.sources[0].weight = 0; }, "data.sources[0].weight is 0, but must be greater"},
          {[](RunConfig& c) { c.data.sources[0].weight = -1; }, "data.sources[0].weight is -1, but must be at least 0"},
          {[](RunConfig& c) {
             c.data.sources[0].weight_changes = {{1, 1}};
           },
           "data.sources[0].weight_changes[0].from_step is 1, but must be within 2 and"},
          {[](RunConfig& c) {
             c.data.sources[0].weight_changes = {{5, 1}, {5, 2}};
           },
           "data.sources[0].weight_changes[1].from_step is 5, but must be greater than that of the change before it, "
           "5"},
          {[](RunConfig& c) {
             c.data.sources[0].weight_changes = {{5, kNan}};
           },
           "data.sources[0].weight_changes[0].weight is nan, but"},
          {[](RunConfig& c) {
             for (SourceConfig& s : c.data.sources) s.weight_changes = {{7, 0}};
           },
           "data.sources: from step 7 on all weights are 0"},
          {[](RunConfig& c) { c.data.sources[1].tokens = -1; },
           "data.sources[1].token_budget is -1, but must be at least 0"},
          {[](RunConfig& c) { c.data.sources[1].tokens = 100; },
           "data.sources[1] (b) has tokens, but a has none; all sources have a budget of tokens, or none"},
          {[](RunConfig& c) {
             for (SourceConfig& s : c.data.sources) s.tokens = 51200;
             c.data.sources[0].weight_changes = {{7, 1}};
           },
           "data.sources[0] (a) has a token_budget and weight_changes, but"},
          {[](RunConfig& c) { c.data.sources[0].tokens = 20000, c.data.sources[1].tokens = 30000; },
           "run.steps is 100, which takes 51200 tokens, but the budgets of data.sources sum to 50000; 98 steps use "
           "them up"},
          {[](RunConfig& c) {
             c.data.validation_sets = {{"a", "x", {}, {}}};
           },
           "data.validation_sets[0].name is a, but another source has that name already"},
          {[](RunConfig& c) {
             c.data.validation_sets = {{"v", "", {}, {}}};
           },
           "data.validation_sets[0] (v) must have one of dataset, shards and text, but has none"},
          {[](RunConfig& c) { c.data.validation_fraction = 1; }, "data.validation_fraction is 1, but"},
          {[](RunConfig& c) { c.data.prefetch_steps = 0; }, "data.prefetch_steps is 0, but"},
          {[](RunConfig& c) {
             c.data.left_out = {{-1, 8}};
           },
           "data.left_out[0].after_step is -1, but"},
          {[](RunConfig& c) {
             c.data.left_out = {{0, 0}};
           },
           "data.left_out[0].rows is 0, but"},
          {[](RunConfig& c) {
             c.data.left_out = {{4, 8}, {4, 8}};
           },
           "data.left_out[1].after_step is 4, but must be greater than that of the entry before it"},
          {[](RunConfig& c) { c.eval.interval_steps = -1; }, "eval.interval_steps is -1, but"},
          {[](RunConfig& c) { c.eval.sequences = -1; }, "eval.sequences is -1, but"},
          {[](RunConfig& c) { c.eval.interval_steps = 10, c.data.validation_fraction = 0; },
           "eval.interval_steps is 10, but data.validation_fraction 0 holds nothing out"},
          {[](RunConfig& c) { c.checkpoint.interval_steps = -1; }, "checkpoint.interval_steps is -1, but"},
          {[](RunConfig& c) { c.checkpoint.keep = -1; }, "checkpoint.keep is -1, but"},
          {[](RunConfig& c) { c.log.interval_steps = 0; }, "log.interval_steps is 0, but must be within 1 and"},
      },
      check_config);
}

TEST(CheckConfig, AcceptsTheEdges) {
  RunConfig c = valid_config();
  c.run.steps = 1;
  c.train.seq_length = 2;
  c.optimizer.lr = c.optimizer.beta1 = c.optimizer.beta2 = c.optimizer.weight_decay = c.optimizer.max_grad_norm = 0;
  c.schedule = {ScheduleKind::kWsd, 0, 1, 0};
  c.mtp.depth = 0;
  c.mtp.loss_weight = c.balance.loss_weight = 0;
  c.data.validation_fraction = 0;
  c.data.sources[0].name = "A-z_0.9";
  c.data.sources[0].weight = 0;
  c.data.sources[0].weight_changes = {{2, 0}, {9, 1}};
  c.model.partial_rotary_factor = 1;
  c.model.num_experts_per_tok = c.model.num_experts;
  c.model.layer_types.assign(48, LayerType::kLinearAttention);
  EXPECT_EQ(message_of<ConfigError>([&] { check_config(c); }), "");
}

TEST(CheckConfig, AcceptsBudgetsThatLastForTheRun) {
  RunConfig c = valid_config();  // 51200 tokens, 512 of a step
  c.data.sources[0].tokens = 20000;
  c.data.sources[1].tokens = 30689;
  EXPECT_EQ(message_of<ConfigError>([&] { check_config(c); }), "");
}

TEST(CheckConfigForRanks, RefusesExactlyTheInvalidCombinations) {
  int num_legal = 0, num_refused = 0;
  for (int64_t ranks : {1, 2, 3, 4, 6, 8}) {
    for (int64_t expert : {1, 2, 3, 4, 8}) {
      for (int64_t num_experts : {4, 6, 8, 9}) {
        for (int64_t global : {1, 2, 4, 6, 8, 12, 24}) {
          for (int64_t micro : {1, 2, 3, 4}) {
            RunConfig c = valid_config();
            c.parallel.expert = expert;
            c.model.num_experts = num_experts;
            c.train.global_batch_size = global;
            c.train.micro_batch_size = micro;
            const std::string message = message_of<ConfigError>([&] { check_config_for_ranks(c, ranks); });
            std::string expected;
            if (ranks % expert != 0 || num_experts % expert != 0) expected = "parallel.expert is ";
            else if (global % (micro * ranks) != 0) expected = "train.global_batch_size is ";
            EXPECT_EQ(message.empty(), expected.empty()) << message;
            EXPECT_TRUE(message.starts_with(expected)) << message;
            ++(expected.empty() ? num_legal : num_refused);
          }
        }
      }
    }
  }
  EXPECT_GT(num_legal, 100);
  EXPECT_GT(num_refused, 100);
}

TEST(CheckConfigForRanks, RanksThatShareRowsAreOneToTheBatch) {
  RunConfig c = valid_config();
  c.parallel.context = 4;
  c.train.micro_batch_size = 2;
  c.train.global_batch_size = 6;
  EXPECT_EQ(message_of<ConfigError>([&] { check_config_for_ranks(c, 12); }), "");
  EXPECT_EQ(message_of<ConfigError>([&] { check_config_for_ranks(c, 6); }),
            "parallel.context is 4, but must divide the 6 ranks");
  EXPECT_EQ(
      message_of<ConfigError>([&] { check_config_for_ranks(c, 16); }),
      "train.global_batch_size is 6, but must be a multiple of train.micro_batch_size * (ranks / parallel.context) = "
      "2 * 4 = 8; nearest: 8, 16, 24");
}

// Commands that take no data, like plan and bench step, ask for no more than this.
TEST(CheckConfigForRanks, RefusesWhatNoStepCanBeMadeOf) {
  const std::pair<void (*)(RunConfig&), const char*> cases[] = {
      {[](RunConfig& c) { c.parallel.expert = 0; }, "parallel.expert is 0, but must be within 1"},
      {[](RunConfig& c) { c.parallel.context = 0; }, "parallel.context is 0, but must be within 1"},
      {[](RunConfig& c) { c.parallel.micro_batches_in_flight = 3; }, "parallel.micro_batches_in_flight is 3, but"},
      {[](RunConfig& c) { c.parallel.max_rows_factor = -1; }, "parallel.max_rows_factor is -1, but"},
      {[](RunConfig& c) { c.parallel.bucket_elements = -1; }, "parallel.bucket_elements is -1, but"},
      {[](RunConfig& c) { c.optimizer.gradient_dtype = GradientDType::kBf16; },
       "optimizer.gradient_dtype is bf16, but"},
      {[](RunConfig& c) { c.precision = Precision::kFp64, c.device = DeviceChoice::kCuda; }, "precision is fp64, but"},
      {[](RunConfig& c) { c.precision = Precision::kBf16, c.device = DeviceChoice::kCpu; }, "precision is bf16, but"},
      {[](RunConfig& c) { c.train.micro_batch_size = 0; }, "train.micro_batch_size is 0, but"}};
  for (const auto& [change, expected] : cases) {
    RunConfig c = valid_config();
    change(c);
    const std::string message = message_of<ConfigError>([&] { check_config_for_ranks(c, 2); });
    EXPECT_TRUE(message.starts_with(expected)) << message;
  }
}

TEST(CheckConfigForRanks, SaysWhichValuesWouldDo) {
  RunConfig c = valid_config();
  c.parallel.expert = 3;
  EXPECT_EQ(message_of<ConfigError>([&] { check_config_for_ranks(c, 12); }),
            "parallel.expert is 3, but must divide both the 12 ranks and the 512 experts; valid here: 1, 2, 4");
  c.parallel.expert = 1;
  c.train.micro_batch_size = 4;
  c.train.global_batch_size = 12;
  EXPECT_EQ(message_of<ConfigError>([&] { check_config_for_ranks(c, 2); }),
            "train.global_batch_size is 12, but must be a multiple of train.micro_batch_size * ranks = 4 * 2 = 8; "
            "nearest: 8, 16, 24; or train.micro_batch_size 2, 3, 6");
  c.train.global_batch_size = 2;
  EXPECT_EQ(message_of<ConfigError>([&] { check_config_for_ranks(c, 3); }),
            "train.global_batch_size is 2, but must be a multiple of train.micro_batch_size * ranks = 4 * 3 = 12; "
            "nearest: 12, 24, 36");
  c.train.micro_batch_size = 0;
  EXPECT_EQ(message_of<ConfigError>([&] { check_config_for_ranks(c, 3); }),
            "train.micro_batch_size is 0, but must be within 1 and 2147483647");
}

}  // namespace
}  // namespace braid
