#include "trainer/plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "kernels/build_config.h"
#include "tests/file_testing.h"
#include "trainer/checkpoint/device_slices.h"
#include "trainer/config/config_reader.h"
#include "trainer/plan_advice.h"

namespace braid {
namespace {

using testing::message_of;

constexpr int64_t kGiB = int64_t{1} << 30;

// The released model on 64 GPUs, eight of which share the experts.
RunConfig released_model() {
  RunConfig config;
  config.precision = Precision::kBf16;
  config.parallel.expert = 8;
  config.train.seq_length = 4096;
  config.train.global_batch_size = 512;
  return config;
}

int64_t activations(RunConfig config, Recompute recompute) {
  config.memory.recompute = recompute;
  return estimate_memory(config, 64).activations;
}

TEST(Plan, NeedsLessTheMoreIsMadeAgain) {
  RunConfig config = released_model();
  config.parallel.max_rows_factor = 1.25;
  const double none = double(activations(config, Recompute::kNone));
  const double elementwise = double(activations(config, Recompute::kElementwise));
  const double moe = double(activations(config, Recompute::kMoe)),
               layer = double(activations(config, Recompute::kLayer));
  EXPECT_LT(elementwise, 0.85 * none);  // rows come from other ranks and stay
  EXPECT_LT(moe, 0.55 * none);
  EXPECT_LT(layer, 0.12 * none);
  config.parallel.expert = 1;
  EXPECT_LT(double(activations(config, Recompute::kElementwise)), 0.55 * double(activations(config, Recompute::kNone)));
}

TEST(Plan, SaysWhatMakesARunFit) {
  RunConfig config = released_model();
  const GpuModel gpu = gpu_model("h100");
  const std::string text = format_plan(config, 64, &gpu);
  EXPECT_NE(text.find("does not fit h100, 79.100 GiB: "), std::string::npos) << text;
  EXPECT_NE(text.find("one change alone:\n  parallel.max_rows_factor=1.25 "), std::string::npos) << text;
  EXPECT_NE(text.find("  memory.recompute=layer "), std::string::npos) << text;
  EXPECT_NE(text.find("one after the other:\n"), std::string::npos) << text;
  EXPECT_EQ(recompute_that_fits(config, 64, &gpu), Recompute::kLayer) << "nothing fits, so the last";
  config.parallel.max_rows_factor = 2;
  config.parallel.expert = 16;
  config.optimizer.moment_dtype = MomentDType::kBf16;
  config.memory.recompute = Recompute::kLayer;
  EXPECT_NE(format_plan(config, 64, &gpu).find("fits h100, 79.100 GiB: "), std::string::npos)
      << format_plan(config, 64, &gpu);
}

// What is advised is legal, takes what is said, and fits where that is said; together it needs what the last line says.
TEST(Plan, AdviceIsTrue) {
  struct Case {
    double share;  // of what the run needs
    int64_t ranks;
    std::vector<std::string> overrides;
    bool fits;
  };
  for (const Case& c : {Case{0.1, 1, {"train.global_batch_size=1"}, true}, Case{0.2, 8, {}, true},
                        Case{0.75, 8, {"parallel.expert=8", "optimizer.kind=muon"}, true},
                        Case{0.8, 8, {"parallel.expert=8", "optimizer.beta2=0.9995", "precision=fp32"}, true},
                        Case{0.3, 8, {"parallel.expert=8", "train.seq_length=16384", "train.micro_batch_size=2"}, true},
                        Case{0.4, 16, {"parallel.expert=8", "parallel.micro_batches_in_flight=2"}, true},
                        Case{0.1, 8, {"model.num_experts=509", "balance.scope=sequence"}, false}}) {
    RunConfig config = released_model();
    config.parallel.expert = 1;
    config.model.num_hidden_layers = 4;
    apply_overrides(config, c.overrides);
    SCOPED_TRACE(concat(c.share, ' ', c.ranks, ' ', c.overrides.empty() ? "" : c.overrides.back()));
    check_config_for_ranks(config, c.ranks);
    GpuModel gpu = gpu_model("h200");
    const int64_t total = estimate_memory(config, c.ranks, &gpu).total();
    gpu.memory_bytes = static_cast<int64_t>(c.share * double(total));
    const PlanAdvice advice = advise(config, c.ranks, gpu);
    const auto expect_true = [&](const PlanChange& change, const std::vector<std::string>& overrides) {
      RunConfig changed = config;
      apply_overrides(changed, overrides);
      EXPECT_NO_THROW(check_model_config(changed));
      EXPECT_NO_THROW(check_config_for_ranks(changed, change.num_ranks));
      const int64_t bytes = estimate_memory(changed, change.num_ranks, &gpu).total();
      EXPECT_EQ(bytes, change.total_bytes);
      EXPECT_EQ(bytes <= gpu.memory_bytes, change.fits);
      EXPECT_LT(bytes, total);
    };
    for (const PlanChange& change : advice.alone) expect_true(change, change.overrides);
    ASSERT_FALSE(advice.in_turn.empty());
    EXPECT_EQ(advice.in_turn.back().fits, c.fits);
    expect_true(advice.in_turn.back(), advice.together);
  }
}

// Of ranks that share experts no more than need be, of recomputation no more layers.
TEST(Plan, AdviceGoesNoFurtherThanNeeded) {
  RunConfig config = released_model();
  config.memory.recompute = Recompute::kElementwise;
  config.parallel.max_rows_factor = 1.25;
  config.optimizer.moment_dtype = MomentDType::kInt8;
  config.optimizer.gradient_dtype = GradientDType::kBf16;
  // A GPU that eight layers made again fit, whatever a build counts.
  GpuModel gpu = gpu_model("h100");
  config.memory.recompute_further = 8;
  gpu.memory_bytes = estimate_memory(config, 64, &gpu).total();
  config.memory.recompute_further = 0;
  const PlanAdvice advice = advise(config, 64, gpu);
  ASSERT_EQ(advice.in_turn.size(), 1u);
  const std::string prefix = "memory.recompute_further=";
  ASSERT_EQ(advice.together.size(), 2u);
  EXPECT_EQ(advice.together[0], "memory.recompute=elementwise");
  ASSERT_TRUE(advice.together[1].starts_with(prefix)) << advice.together[1];
  config.memory.recompute_further = std::stoi(advice.together[1].substr(prefix.size()));
  ASSERT_GT(config.memory.recompute_further, 0);
  EXPECT_LE(estimate_memory(config, 64, &gpu).total(), gpu.memory_bytes);
  --config.memory.recompute_further;
  EXPECT_GT(estimate_memory(config, 64, &gpu).total(), gpu.memory_bytes);

  config.memory.recompute_further = 0;
  std::vector<PlanChange> offloaded = advise(config, 64, gpu).alone;
  std::erase_if(offloaded, [](const PlanChange& c) {
    return c.overrides.empty() || c.overrides.front() != "memory.offload=optimizer";
  });
  ASSERT_EQ(offloaded.size(), 1u);
  ASSERT_EQ(offloaded[0].overrides.size(), 2u) << "all state";
  const std::string share = offloaded[0].overrides[1];
  EXPECT_TRUE(share.starts_with("memory.offload_share=0.") && share.size() == 24) << share;
  EXPECT_TRUE(offloaded[0].fits);

  config = released_model();
  config.parallel.expert = 1;
  const GpuModel large = gpu_model("400GB");
  const std::vector<PlanChange> alone = advise(config, 8, large).alone;
  const std::vector<std::string> two = {"parallel.expert=2"};
  EXPECT_TRUE(
      std::any_of(alone.begin(), alone.end(), [&](const PlanChange& c) { return c.overrides == two && c.fits; }));
}

TEST(Plan, AsJsonSaysTheSame) {
  RunConfig config = released_model();
  config.memory.recompute = Recompute::kMoe;
  config.memory.offload = Offload::kOptimizer;
  const GpuModel gpu = gpu_model("80GB");
  const MemoryEstimate memory = estimate_memory(config, 64, &gpu);
  const auto json = nlohmann::json::parse(plan_json(config, 64, &gpu));
  EXPECT_EQ(json["ranks"], 64);
  EXPECT_EQ(json["parameters"]["main_model"], count_parameters(config.model, config.mtp).main);
  EXPECT_EQ(json["memory_bytes"]["activations"], memory.activations);
  EXPECT_EQ(json["total_bytes"], memory.total());
  EXPECT_EQ(json["host_memory_bytes"]["optimizer_state"], memory.offloaded);
  EXPECT_EQ(json["recompute"], "moe");
  EXPECT_EQ(json["repeated_percent"], repeated_percent(config, Recompute::kMoe));
  EXPECT_EQ(json["fits"], memory.total() <= gpu.memory_bytes);
  EXPECT_EQ(json["device"]["memory_bytes"], 80'000'000'000);
  EXPECT_EQ(json["alone"].empty(), json["fits"]);
  EXPECT_NE(format_plan(config, 64, &gpu).find("products of a step made again                9.3 %"), std::string::npos)
      << format_plan(config, 64, &gpu);
  config.train.seq_length = 0;
  EXPECT_EQ(nlohmann::json::parse(plan_json(config, 1)).size(), 1u) << "without a batch, counts alone";
}

// What an operator refuses is the config's fault where only its sizes are known.
TEST(Plan, RefusesSizesThatNoOperatorComputes) {
  if constexpr (!kWithCuda) GTEST_SKIP() << "only GPUs have such a limit";
  RunConfig config = released_model();
  config.model.num_hidden_layers = 1;
  config.model.moe_intermediate_size = 16;
  config.model.num_experts = 40'000;
  const GpuModel gpu = gpu_model("h200");
  EXPECT_EQ(message_of<ConfigError>([&] { estimate_memory(config, 64, &gpu); }),
            "no operator computes a model of this shape: rows_per_expert: 5000 experts, but at most 4096 on the GPU");
}

// Where the experts' rows fit no longer but a layer's own do, as few layers as need be make themselves again whole.
TEST(Plan, AutoTakesTheCheapestMixThatFits) {
  RunConfig config = released_model();
  config.mtp.depth = 1;
  config.parallel.max_rows_factor = 3;
  config.train.micro_batch_size = 2;
  const auto total = [&](const Recomputation& r) {
    return estimate_memory(with_recomputation(config, r), 8, nullptr).total();
  };
  const int64_t moe = total(Recompute::kMoe), layer = total(Recompute::kLayer);
  const auto taken_with = [&](int64_t bytes) {
    return recomputation_that_fits(config, bytes, [](const RunConfig& c) { return estimate_memory(c, 8).total(); });
  };
  EXPECT_EQ(taken_with(moe), Recompute::kMoe);
  EXPECT_EQ(taken_with(layer), Recompute::kLayer);
  EXPECT_EQ(taken_with(0), Recompute::kLayer) << "nothing fits";
  const Recomputation mix = taken_with(moe - (moe - layer) / 4);
  EXPECT_EQ(mix.policy, Recompute::kMoe);
  EXPECT_GT(mix.further, 5);
  EXPECT_LT(mix.further, 15) << "about a quarter of 49 layers";
  EXPECT_LE(total(mix), moe - (moe - layer) / 4);
  EXPECT_GT(total({mix.policy, mix.further - 1}), moe - (moe - layer) / 4);
  EXPECT_NE(format_plan(with_recomputation(config, mix), 8, nullptr)
                .find(concat("recompute moe, layer in ", mix.further, " of 49 layers\n")),
            std::string::npos);
}

// The whole model in one host of eight GPUs: masters in two halves, and the experts' gradients in bf16.
TEST(Plan, TheReleasedModelFitsOneHost) {
  RunConfig config = released_model();
  config.mtp.depth = 1;
  config.parallel.expert = 8;
  config.parallel.max_rows_factor = 2;
  config.optimizer.moment_dtype = MomentDType::kBf16;
  config.memory.recompute = Recompute::kLayer;
  const MemoryEstimate wide = estimate_memory(config, 8, nullptr);
  config.optimizer.gradient_dtype = GradientDType::kBf16;
  const MemoryEstimate memory = estimate_memory(config, 8, nullptr);
  const int64_t experts = int64_t{49} * 512 / 8 * 3 * 2048 * 512;  // of a rank
  EXPECT_EQ(wide.gradients - memory.gradients, 2 * experts);
  // Of an expert's weight, all on this rank: 2 bytes, 2 of gradient, 2 low bits, 2 of each moment.
  EXPECT_LT(memory.weights + memory.gradients + memory.optimizer, int64_t{10} * experts + 20'000'000'000);
}

// A GPU's scratch is counted by its own operators, with no GPU there; without them it is said not to be counted.
TEST(Plan, CountsForAGpuThatIsNotThere) {
  RunConfig config = released_model();
  config.model.num_hidden_layers = 4;
  config.parallel.max_rows_factor = 1.25;
  const GpuModel gpu = gpu_model("h200");
  const MemoryEstimate memory = estimate_memory(config, 64, &gpu);
  EXPECT_EQ(memory.scratch.has_value(), kWithCuda);
  if constexpr (kWithCuda) {
    const int64_t rows = int64_t(1.25 * 4096 * 10);  // of a rank: those of dispatched gradients, sent on and back
    EXPECT_GT(*memory.scratch, 2 * rows * config.model.hidden_size * 2);
    EXPECT_LT(*memory.scratch, 8 * rows * config.model.hidden_size * 2);
    EXPECT_GE(memory.windows, 2 * 8 * 4096 * config.model.hidden_size * 2);
    config.parallel.expert = 16;  // on two hosts, where rows do not travel by windows
    EXPECT_EQ(estimate_memory(config, 64, &gpu).windows, 0);
  }
}

// Either of two micro-batches in flight may be the one whose rows are too many and are worked through in rounds: half
// of the 80B model on four H200 took 4.8 GiB more than planned where the second was, as its scratch grew.
TEST(Plan, CountsRoundsOfEitherMicroBatchInFlight) {
  if constexpr (!kWithCuda) GTEST_SKIP() << "a build without CUDA does not count it";
  RunConfig config = released_model();
  config.model.num_hidden_layers = 4;
  config.train.micro_batch_size = 2;
  config.parallel.max_rows_factor = 2;  // so that rounds take more than the head
  const GpuModel gpu = gpu_model("h200");
  const MemoryEstimate one = estimate_memory(config, 8, &gpu);
  config.parallel.micro_batches_in_flight = 2;
  const MemoryEstimate two = estimate_memory(config, 8, &gpu);
  EXPECT_EQ(two.second_scratch, *one.scratch);
  EXPECT_EQ(*two.scratch, 2 * *one.scratch);
}

// What was in use beyond the rest of the plan: one GPU, group-256-ep2 on two H200, rows of 32,768 that four H200 share.
TEST(Plan, CountsWhatLibrariesTakeForEveryGroup) {
  if constexpr (!kWithCuda) GTEST_SKIP() << "a build without CUDA does not count it";
  RunConfig config = released_model();
  config.model.num_hidden_layers = 4;
  const GpuModel gpu = gpu_model("h200");
  const auto mib = [&](int64_t ranks, int64_t expert, int64_t context) {
    config.parallel.expert = expert, config.parallel.context = context;
    return double(estimate_memory(config, ranks, &gpu).libraries >> 20);
  };
  EXPECT_NEAR(mib(1, 1, 1), 668, 60);
  EXPECT_NEAR(mib(2, 2, 1), 1536 + 538, 60);
  EXPECT_NEAR(mib(4, 1, 4), 1536 + 1331, 60);
}

// A save that goes on beside a GPU's training takes a copy in host memory, one that is waited for a buffer.
TEST(Plan, CountsTheHostMemoryOfSaves) {
  RunConfig config = released_model();
  config.model.num_hidden_layers = 4;
  config.checkpoint.interval_steps = 100;
  const GpuModel gpu = gpu_model("h200");
  const auto bytes = [&](CheckpointContents contents, bool async) {
    config.checkpoint.contents = contents;
    config.checkpoint.async = async;
    return estimate_memory(config, 8, &gpu).saving_on_host;
  };
  const double of_a_rank = double(count_parameters(config.model, config.mtp).total()) / 8;
  EXPECT_NEAR(double(bytes(CheckpointContents::kAll, true)), 12 * of_a_rank, 0.1 * of_a_rank);
  EXPECT_NEAR(double(bytes(CheckpointContents::kWeights, true)), 2 * of_a_rank, 0.1 * of_a_rank);
  EXPECT_EQ(bytes(CheckpointContents::kAll, false), kStagingBytes);
  EXPECT_NE(format_plan(config, 8, &gpu).find("host memory of saves, beside it            0.062 GiB"),
            std::string::npos)
      << format_plan(config, 8, &gpu);
  EXPECT_EQ(estimate_memory(config, 8).saving_on_host, 0);
}

// Of a GPU's memory only windows are left; a CPU has it all in the one memory that there is.
TEST(Plan, CountsOffloadedStateInHostMemory) {
  RunConfig config = released_model();
  config.model.num_hidden_layers = 4;
  const GpuModel gpu = gpu_model("h200");
  for (const MomentDType moments : {MomentDType::kFp32, MomentDType::kBf16, MomentDType::kInt8}) {
    config.optimizer.moment_dtype = moments;
    config.memory.offload = Offload::kNone;
    const MemoryEstimate here = estimate_memory(config, 8, &gpu), on_cpu = estimate_memory(config, 8);
    config.memory.offload = Offload::kOptimizer;
    const MemoryEstimate away = estimate_memory(config, 8, &gpu);
    EXPECT_EQ(here.offloaded, 0);
    EXPECT_EQ(away.offloaded, here.optimizer);
    EXPECT_LE(away.optimizer, int64_t{3} * 81 << 20);
    EXPECT_GE(away.optimizer, int64_t{3} * 32 << 20);
    EXPECT_EQ(away.total() - away.optimizer, here.total() - here.optimizer);
    EXPECT_EQ(estimate_memory(config, 8).total(), on_cpu.total());
    config.memory.offload_share = 0.4;
    const MemoryEstimate in_part = estimate_memory(config, 8, &gpu);
    EXPECT_GE(in_part.offloaded, 4 * away.offloaded / 10);
    EXPECT_LE(in_part.offloaded, 6 * away.offloaded / 10);  // a bucket more
    EXPECT_EQ(in_part.offloaded + in_part.optimizer, away.offloaded + away.optimizer);
    config.memory.offload_share = 1;
  }
  const std::string plan = format_plan(config, 8, &gpu);
  EXPECT_NE(plan.find("host memory of optimizer state"), std::string::npos) << plan;
  EXPECT_NE(plan.find("  of 8 ranks on a host"), std::string::npos) << plan;
}

TEST(GpuModel, HasANameOrASize) {
  EXPECT_EQ(gpu_model("h200").compute_capability, 90);
  EXPECT_EQ(gpu_model("H200").name, "h200");
  EXPECT_EQ(gpu_model("80GB").memory_bytes, 80'000'000'000);
  EXPECT_EQ(gpu_model("80gb").memory_bytes, 80'000'000'000);
  EXPECT_EQ(gpu_model("141GiB").memory_bytes, 141 * kGiB);
  for (const char* wrong : {"", "h300", "80", "80MB", "-3GB", "GB"})
    EXPECT_EQ(message_of<ConfigError>([&] { gpu_model(wrong); }),
              std::string("--device ") + wrong + ": is none of a100, h100, h200, nor a size like 80GB or 141GiB");
}

}  // namespace
}  // namespace braid
