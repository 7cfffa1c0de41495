#include "trainer/bench/step_bench.h"

#include <gtest/gtest.h>

#include "tests/testing.h"
#include "trainer/config/config_reader.h"
#include "trainer/plan.h"
#include "trainer/train_step.h"
#include "trainer/training_state.h"

namespace braid {
namespace {

RunConfig shipped(const std::string& name, const std::vector<std::string>& overrides = {}) {
  std::vector<std::string> all = {"device=cpu"};
  all.insert(all.end(), overrides.begin(), overrides.end());
  return read_config(testing::moved("BRAID_SOURCE", BRAID_SOURCE_FOLDER) + "/configs/" + name, all);
}

// Steps on documents of each length, the last of them padding. Returns the most scratch that was in use.
int64_t measured_scratch(const RunConfig& config, Context& ctx, TrainingState& state,
                         const std::vector<int64_t>& lengths) {
  const int64_t B = config.train.micro_batch_size, T = config.train.seq_length;
  const ProcessMesh mesh(make_local_communicator(), 1, config.model.num_experts);
  for (int64_t length : lengths) {
    Batch batch{B, T, std::vector<int64_t>(B * T, 3), std::vector<int64_t>(B * T, 5), Segments::whole_rows(B, T)};
    batch.segments.offsets = {0};
    for (int64_t row = 0; row < B; ++row) {
      for (int64_t t = length; t < T; t += length) batch.segments.offsets.push_back(row * T + t);
      batch.segments.offsets.push_back((row + 1) * T);
    }
    // No padding beside whole rows: these route most tokens.
    for (int64_t t = B * T - length % T; t < B * T; ++t) batch.segments.valid[t] = 0, batch.targets[t] = -1;
    StepBatches batches;
    batches.add(batch);
    train_step(ctx, state, batches, mesh, config, 1);
    EXPECT_LE(ctx.scratch_peak_bytes(), *state.needs().scratch) << "documents of " << length;
  }
  return ctx.scratch_peak_bytes();
}

// What `braid plan` says before anything is allocated is what steps then take: no more, in one block, and at most 1 %
// less. Short documents cut an operator's tiles, padding leaves rows out.
TEST(StepMemory, IsWhatWasPlanned) {
  struct Case {
    const char* config;
    std::vector<std::string> overrides;
  };
  const Case cases[] = {
      {"runs/tiny.yaml", {}},
      {"runs/tiny.yaml", {"precision=fp64", "balance.counts=exact", "train.micro_batch_size=4"}},
      {"runs/laptop.yaml", {}},
      {"runs/laptop.yaml", {"memory.recompute=elementwise"}},
      {"runs/laptop.yaml", {"memory.recompute=layer", "optimizer.kind=muon"}},
      {"runs/laptop.yaml", {"model.full_attention_interval=1"}},
      {"runs/laptop.yaml", {"balance.scope=micro_batch"}},
      {"runs/laptop.yaml", {"mtp.depth=0"}},
      // 8192 rows, room for 4096
      {"runs/laptop.yaml", {"parallel.max_rows_factor=0.1", "model.num_experts_per_tok=8", "train.seq_length=512"}}};
  for (const Case& c : cases) {
    SCOPED_TRACE(c.config);
    RunConfig config = shipped(c.config, c.overrides);
    config.train.global_batch_size = config.train.micro_batch_size =
        std::min<int64_t>(config.train.micro_batch_size, 2);
    Context ctx = Context::cpu();
    const ProcessMesh mesh(make_local_communicator(), 1, config.model.num_experts);
    TrainingState state(config, mesh);
    state.allocate(ctx);
    state.initialize(ctx);
    const MemoryEstimate planned = estimate_memory(config, 1);
    EXPECT_EQ(state.needs().total(), planned.total());
    const int64_t reserved = ctx.scratch_reserved_bytes();
    EXPECT_LE(reserved, *planned.scratch + 256);
    const int64_t used = measured_scratch(config, ctx, state, {config.train.seq_length, 65, 1});
    EXPECT_EQ(ctx.scratch_reserved_bytes(), reserved) << "took more than one block";
    EXPECT_GE(double(planned.total() - *planned.scratch + used), 0.99 * double(planned.total()));
    EXPECT_GE(double(used), 0.95 * double(*planned.scratch));
  }
}

// The benchmark of a step reports both.
TEST(StepMemory, IsReportedByTheBenchmark) {
  RunConfig config = shipped("runs/tiny.yaml");
  config.train.global_batch_size = config.train.micro_batch_size;
  Context ctx = Context::cpu();
  const ProcessMesh mesh(make_local_communicator(), 1, config.model.num_experts);
  const StepBenchResult r = bench_step(ctx, mesh, config, {.warmup_steps = 0, .steps = 1, .profiled_steps = 0});
  EXPECT_EQ(r.planned_bytes, estimate_memory(config, 1).total());
  EXPECT_EQ(r.scratch_bytes, ctx.scratch_peak_bytes());
  EXPECT_LE(r.scratch_bytes, r.planned_scratch_bytes);
}

// A plan for ranks that are not there counts what their messages take, and nothing of it moves.
TEST(StepMemory, IsPlannedForRanksThatAreNotThere) {
  RunConfig config = shipped("runs/laptop.yaml", {"parallel.expert=2"});
  const MemoryEstimate one = estimate_memory(shipped("runs/laptop.yaml"), 1), two = estimate_memory(config, 2);
  EXPECT_GT(*two.scratch, *one.scratch) << "rows may all arrive at one rank";
  Context ctx = Context::cpu();
  auto planned = make_planned_communicator(2);
  double number = 0;
  EXPECT_THROW(planned->all_reduce(ctx, Tensor::of(&number, {1}), ReduceOp::kSum), CommunicationError);
}

// They build on each other, and what one takes of another need not fit it.
TEST(StepMemory, OfRunFilesOfTheReleasedModelFitsTheirGpus) {
  struct Case {
    const char* config;
    int64_t ranks;
    const char* gpu;
  };
  for (const Case& c : {Case{"runs/qwen3-next-80b/one-node-h200.yaml", 8, "h200"},
                        {"runs/qwen3-next-80b/eight-nodes-h200.yaml", 64, "h200"},
                        {"runs/qwen3-next-80b/sixteen-nodes-h100.yaml", 128, "h100"},
                        {"runs/qwen3-next-80b/long-64k.yaml", 32, "h200"},
                        {"bench/half-ep4.yaml", 4, "h200"}}) {
    const RunConfig config = shipped(c.config, {"device=cuda"});
    EXPECT_NO_THROW(check_model_config(config)) << c.config;
    const GpuModel gpu = gpu_model(c.gpu);
    const MemoryEstimate memory = estimate_memory(config, c.ranks, &gpu);
    EXPECT_LT(memory.total(), gpu.memory_bytes - (int64_t{4} << 30)) << c.config;
    EXPECT_GT(memory.total(), gpu.memory_bytes / 2) << c.config << ": leaves half of the GPU unused";
  }
}

}  // namespace
}  // namespace braid
