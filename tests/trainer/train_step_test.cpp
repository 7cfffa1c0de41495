#include "trainer/train_step.h"

#include "tests/model/tiny_model.h"

namespace braid {
namespace {

using namespace braid::testing;

RunConfig config_of(int64_t micro_batch_size) {
  RunConfig c;
  c.precision = Precision::kFp64;
  c.model = tiny_model_config();
  c.train.micro_batch_size = micro_batch_size;
  c.train.global_batch_size = 6;
  c.train.seq_length = 8;
  c.run.steps = 10;
  c.data.sources.resize(4);
  return c;
}

// Six rows of three sources, the last of which has one without targets; of the fourth there is none.
constexpr int64_t kSources[] = {1, 0, 1, 1, 0, 2};

Batch row(int64_t index) {
  const bool is_last = index == 5;
  Batch batch = random_batch({is_last ? std::vector<int64_t>(8, 1) : std::vector<int64_t>{2 + index, 6 - index}},
                             tiny_model_config().vocab_size, 10 + static_cast<uint64_t>(index));
  batch.sources = {kSources[index]};
  return batch;
}

Batch rows(int64_t begin, int64_t end) {
  Batch batch = row(begin);
  for (int64_t i = begin + 1; i < end; ++i) {
    const Batch next = row(i);
    batch.tokens.insert(batch.tokens.end(), next.tokens.begin(), next.tokens.end());
    batch.targets.insert(batch.targets.end(), next.targets.begin(), next.targets.end());
    batch.sources.push_back(next.sources[0]);
    Segments& s = batch.segments;
    const int64_t before = s.offsets.back();
    for (size_t d = 1; d < next.segments.offsets.size(); ++d) s.offsets.push_back(before + next.segments.offsets[d]);
    s.valid.insert(s.valid.end(), next.segments.valid.begin(), next.segments.valid.end());
    s.num_rows = batch.num_rows += 1;
  }
  return batch;
}

TEST(TrainStep, TellsTheLossOfEverySource) {
  for (int64_t micro_batch_size : {1, 2, 3, 6}) {
    SCOPED_TRACE(micro_batch_size);
    const RunConfig config = config_of(micro_batch_size);
    const ProcessMesh mesh(make_local_communicator(), 1, config.model.num_experts);
    Context ctx = Context::cpu();
    TrainingState state(config, mesh);
    state.allocate(ctx);
    state.initialize(ctx);

    // Of the model alone, before the step changes it: the targets of the other rows are taken away.
    std::vector<double> expected(4);
    std::vector<int64_t> targets(4);
    StepBatches batches;
    for (int64_t begin = 0; begin < 6; begin += micro_batch_size) {
      for (int64_t source = 0; source < 4; ++source) {
        Batch batch = rows(begin, begin + micro_batch_size);
        for (int64_t t = 0; t < std::ssize(batch.targets); ++t)
          if (kSources[begin + t / 8] != source) batch.targets[t] = -1;
        batch.complete();
        state.model.forward(ctx, batch);
        expected[source] += state.model.losses(ctx).lm;
        targets[source] += batch.counts.lm_targets;
      }
      batches.add(rows(begin, begin + micro_batch_size));
    }
    const StepResult result = train_step(ctx, state, batches, mesh, config, 1);
    ASSERT_EQ(result.loss_of_sources.size(), 4u);
    double sum = 0;
    for (int64_t source : {0, 1}) {
      EXPECT_NEAR(result.loss_of_sources[source], expected[source] / double(targets[source]), 1e-12) << source;
      sum += result.loss_of_sources[source] * double(targets[source]);
    }
    EXPECT_NEAR(result.loss_lm, sum / double(batches.counts.lm_targets), 1e-12);
    EXPECT_TRUE(std::isnan(result.loss_of_sources[2]));  // no targets
    EXPECT_TRUE(std::isnan(result.loss_of_sources[3]));  // no rows
  }
}

}  // namespace
}  // namespace braid
