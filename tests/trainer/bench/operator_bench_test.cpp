#include "trainer/bench/operator_bench.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>

#include "tests/messages.h"
#include "tests/parallel/mpi_testing.h"

namespace braid {
namespace {

using testing::world;
using Names = std::set<std::string>;

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// Every case at sizes that the CPU does at once: a wrong shape, dtype or order of arguments shows here too.
OperatorBenchOptions small() {
  OperatorBenchOptions o;
  o.sizes = bench_sizes(Device::kCpu, 192);  // 3 rows of 64
  o.sizes.vocabulary = 97;
  o.sizes.hidden = 32;
  o.sizes.gdn = GdnDims{2, 4, 8, 8, 4};
  o.sizes.attention = AttentionDims{4, 2, 16, 8, 1e4, 1e-6};
  o.sizes.experts = 16;
  o.sizes.experts_per_token = 3;
  o.sizes.expert_width = o.sizes.shared_width = 8;
  o.sizes.shard_elements = 1000;
  o.sizes.product_size = 32;
  o.sizes.copy_bytes = 1 << 16;
  o.exchange_mib = {1, 2};
  o.max_turns = 3;
  return o;
}

constexpr Ceilings kCeilings = {.bytes_per_ms = 100, .flop_per_ms = 1000, .link_bytes_per_ms = 10};

std::vector<OperatorTiming> timings_of(const OperatorBenchOptions& options, Communicator& world) {
  Context ctx = Context::cpu();
  size_t reported = 0;
  std::vector<OperatorTiming> timings =
      bench_operators(ctx, world, options, kCeilings, [&](const OperatorTiming&) { ++reported; });
  EXPECT_EQ(reported, timings.size());
  return timings;
}

Names names(const std::vector<OperatorTiming>& timings) {
  Names result;
  for (const OperatorTiming& t : timings) result.insert(t.op);
  return result;
}

TEST(OperatorBench, TimesEveryOperator) {
  const std::vector<std::string> all = timed_operators({}, world().size());
  const Names expected(all.begin(), all.end());
  Names rows;
  const std::vector<OperatorTiming> timings = timings_of(small(), world());
  EXPECT_EQ(names(timings), expected);
  for (const OperatorTiming& t : timings) {
    EXPECT_GT(t.ms, 0) << t.op;
    EXPECT_GT(t.share, 0) << t.op;
    EXPECT_GT(t.bytes_moved(), 0) << t.op;
    EXPECT_TRUE(rows.insert(t.op + t.shape).second) << t.op << " has " << t.shape << " twice";
  }
}

TEST(OperatorBench, TimesWhatWasChosen) {
  const auto alone = make_local_communicator();
  auto chosen = [&](std::vector<std::string> ops) {
    OperatorBenchOptions options = small();
    options.ops = std::move(ops);
    return names(timings_of(options, *alone));
  };
  EXPECT_EQ(chosen({"gated_delta_rule"}), Names({"carry_states", "gated_delta_rule_backward",
                                                 "gated_delta_rule_forward", "gated_delta_rule_transition"}));
  EXPECT_EQ(chosen({"rms_norm_forward"}), Names({"rms_norm_forward"}));
  EXPECT_EQ(chosen({"expert_rows"}), Names({"add_rows", "combine_rows", "expert_order", "gather_rows", "limit_rows",
                                            "local_expert_ids", "token_places", "window_of_order"}));
  EXPECT_EQ(chosen({"sum", "fill_zero"}), Names({"fill_zero", "sum_squares"}));
  EXPECT_EQ(chosen({"attention_b"}), Names({"attention_backward"}));
}

TEST(OperatorBench, ASingleRankHasNoCollectives) {
  const auto alone = make_local_communicator();
  const Names all = names(timings_of(small(), *alone));
  EXPECT_FALSE(all.contains("all_reduce"));
  EXPECT_TRUE(all.contains("experts_backward_weight"));
  EXPECT_NO_THROW(check_operators_run({"a", "all_reduce"}, 2));
  EXPECT_NO_THROW(check_operators_run({"a"}, 1));  // also the beginning of attention
  EXPECT_THROW(check_operators_run({"all_reduce"}, 1), ConfigError);
}

TEST(OperatorBench, ListsTheNamesItKnows) {
  EXPECT_NO_THROW(check_operator_names({"experts", "all_to_all_rows", "expert_rows", "linear"}));
  for (const char* name : {"softmax", "", "norm"}) {
    const std::string message = testing::message_of<ConfigError>([&] { check_operator_names({"experts", name}); });
    testing::expect_contains(message, concat("--op ", name, ": "));
    testing::expect_contains(message, "rms_norm_forward, rms_norm_backward");
  }
}

TEST(OperatorBench, JudgesByTheLongestFloor) {
  auto judge = [](Work work) { return judged({"op", "shape", 8, work}, kCeilings); };
  const OperatorTiming memory = judge({.bytes = 400, .flop = 3000});  // 4 ms and 3 ms of the 8
  EXPECT_EQ(memory.bound, Bound::kMemory);
  EXPECT_DOUBLE_EQ(memory.share, 0.5);
  const OperatorTiming compute = judge({.bytes = 400, .flop = 6000});
  EXPECT_EQ(compute.bound, Bound::kCompute);
  EXPECT_DOUBLE_EQ(compute.share, 0.75);
  EXPECT_DOUBLE_EQ(compute.bytes_moved(), 400);
  const OperatorTiming link = judge({.link_bytes = 20});
  EXPECT_EQ(link.bound, Bound::kLink);
  EXPECT_DOUBLE_EQ(link.share, 0.25);
  EXPECT_DOUBLE_EQ(link.bytes_moved(), 20);
}

TEST(OperatorBench, MeasuresCeilings) {
  Context ctx = Context::cpu();
  const Ceilings ceilings = measure_ceilings(ctx, world(), small());
  EXPECT_GT(ceilings.bytes_per_ms, 0);
  EXPECT_GT(ceilings.flop_per_ms, 0);
  EXPECT_EQ(ceilings.link_bytes_per_ms > 0, world().size() > 1);
}

TEST(OperatorBench, Formats) {
  const Ceilings ceilings = {.bytes_per_ms = 4e9, .flop_per_ms = 8e11};
  const OperatorBenchHead head = {{"NVIDIA H200", "580.65.06, CUDA 13.0"}, "2026-11-23", 1, 32768, ceilings};
  const OperatorTiming product = judged({"matmul", "a shape", 2, {.bytes = 4e8, .flop = 8e11}}, ceilings);
  const OperatorTiming pass = judged({"fill_zero", "another", 0.5, {.bytes = 1e9}}, ceilings);
  auto matches = [](const OperatorTiming& timing, const char* pattern) {
    return std::regex_match(format_operator_timing(timing), std::regex(pattern));
  };
  EXPECT_TRUE(has(format_operator_head(head), "copy 4.00 TB/s, product 800.0 TFLOP/s\n")) << format_operator_head(head);
  EXPECT_TRUE(matches(product, "matmul +a shape +2.0000 +0.200 +400.0 +50.0 compute\n"));
  EXPECT_TRUE(matches(pass, "fill_zero +another +0.5000 +2.000 +50.0 memory\n"));

  const auto json = nlohmann::json::parse(operator_bench_json(head, {product, pass}));
  EXPECT_EQ(json["device"], "NVIDIA H200");
  EXPECT_EQ(json["driver"], "580.65.06, CUDA 13.0");
  EXPECT_EQ(json["date"], "2026-11-23");
  EXPECT_EQ(json["ceilings"]["tb_per_s"], 4.0);
  EXPECT_EQ(json["ceilings"]["tflops"], 800.0);
  EXPECT_TRUE(json["ceilings"]["link_tb_per_s"].is_null());
  ASSERT_EQ(json["operators"].size(), 2);
  EXPECT_EQ(json["operators"][0], (nlohmann::json{{"op", "matmul"},
                                                  {"shape", "a shape"},
                                                  {"ms", 2.0},
                                                  {"bytes", 400000000},
                                                  {"flop", 800000000000},
                                                  {"tb_per_s", 0.2},
                                                  {"tflops", 400.0},
                                                  {"share", 0.5},
                                                  {"bound", "compute"}}));
  EXPECT_TRUE(json["operators"][1]["tflops"].is_null());
}

TEST(OperatorBench, CutsBatchesIntoSequences) {
  auto name = [](int64_t num_tokens) { return cases::rows_name(bench_sizes(Device::kCuda, num_tokens)); };
  EXPECT_EQ(name(32768), "8 x 4096");
  EXPECT_EQ(name(1024), "1 x 1024");
  EXPECT_EQ(name(4096 + 64), "65 x 64");
  const Segments mixed = cases::mixed_documents(bench_sizes(Device::kCuda, 8192));
  EXPECT_EQ(mixed.offsets.back(), 8192);
  EXPECT_EQ(std::count(mixed.offsets.begin(), mixed.offsets.end(), 4096), 1);
}

}  // namespace
}  // namespace braid
