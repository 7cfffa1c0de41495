#include "data/batch_stream.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <map>
#include <random>
#include <set>
#include <sstream>
#include <thread>

#include "data/mixture.h"
#include "data/sample_order.h"
#include "kernels/core/error.h"
#include "tests/data/shard_files.h"

namespace braid {
namespace {

using namespace braid::testing;

// Two sources of 13 and 5 rows of 8 tokens.
class BatchStreamTest : public ::testing::Test {
 protected:
  BatchStreamTest() {
    paths_ = {write_shard(folder_ / "a.h5", std::vector<int64_t>(13, 7)),
              write_shard(folder_ / "b.h5", {20, 8, 6}, 500)};
    for (const std::string& path : paths_)
      datasets_.emplace_back(path, std::vector<std::string>{path}, 8, Split::kTrain, 0);
  }

  static BatchPlan plan(int64_t global, int64_t micro, int64_t ranks = 1, int64_t rank = 0) {
    BatchPlan plan;
    plan.global_batch_size = global;
    plan.micro_batch_size = micro;
    plan.num_ranks = ranks;
    plan.rank = rank;
    plan.seed = 11;
    plan.mixture = Mixture(std::vector<double>{3, 1});
    return plan;
  }

  TemporaryFolder folder_;
  std::vector<std::string> paths_;
  std::vector<TokenDataset> datasets_;
};

TEST(BatchSizes, SayWhereAStepBegins) {
  BatchSizes sizes = 8;
  EXPECT_EQ(sizes.rows_of_first(0), 0);
  EXPECT_EQ(sizes.rows_of_first(5), 40);
  sizes.change(3, 8);
  EXPECT_EQ(sizes.changes().size(), 1u);
  sizes.change(3, 4);
  sizes.change(5, 16);
  const std::vector<std::array<int64_t, 3>> expected = {{0, 8, 0},  {2, 8, 16},  {3, 4, 24},
                                                        {4, 4, 28}, {5, 16, 32}, {7, 16, 64}};
  for (const auto& [steps, rows, before] : expected) {
    EXPECT_EQ(sizes.rows_after(steps), rows) << steps;
    EXPECT_EQ(sizes.rows_of_first(steps), before) << steps;
  }
  EXPECT_EQ(BatchSizes(sizes.changes()).rows_of_first(9), 96);
  sizes.change(4, 2);  // from an older checkpoint: what came later is gone
  EXPECT_EQ(sizes.changes(), (std::vector<BatchSizes::Change>{{0, 8}, {3, 4}, {4, 2}}));
  sizes.change(0, 6);
  EXPECT_EQ(sizes.changes(), (std::vector<BatchSizes::Change>{{0, 6}}));
}

TEST(BatchSizes, LeaveSamplesOut) {
  BatchSizes sizes = 8;
  sizes.leave_out(3, 24);
  sizes.leave_out(3, 4);  // once more from the same place
  sizes.leave_out(5, 1);
  EXPECT_EQ(sizes.left_out(), (std::vector<BatchSizes::LeftOut>{{3, 28}, {5, 1}}));
  const std::vector<std::array<int64_t, 3>> expected = {{1, 0, 8}, {3, 16, 24}, {4, 52, 60}, {5, 60, 68}, {6, 69, 77}};
  for (const auto& [step, begin, end] : expected) {
    EXPECT_EQ(sizes.rows_of_first(step - 1), begin) << step;
    EXPECT_EQ(sizes.end_of(step), end) << step;
  }
}

// Whatever sizes its steps have, a run reads the samples of the mixture once and in their order.
TEST_F(BatchStreamTest, StepsOfOtherSizesGoOnWithTheNextSample) {
  const StepBatches whole = BatchStream::read_step(datasets_, plan(40, 4), 0);
  std::vector<int64_t> expected, read;
  for (const Batch& batch : whole.micro_batches)
    expected.insert(expected.end(), batch.tokens.begin(), batch.tokens.end());
  BatchPlan changing = plan(8, 4);
  changing.global_batch_size.change(2, 4);
  changing.global_batch_size.change(3, 20);
  for (int64_t step = 0; step < 4; ++step)
    for (const Batch& batch : BatchStream::read_step(datasets_, changing, step).micro_batches)
      read.insert(read.end(), batch.tokens.begin(), batch.tokens.end());
  EXPECT_EQ(read, expected);
}

void expect_equal(const StepBatches& actual, const StepBatches& expected) {
  EXPECT_EQ(actual.step, expected.step);
  ASSERT_EQ(actual.micro_batches.size(), expected.micro_batches.size());
  for (size_t i = 0; i < expected.micro_batches.size(); ++i) {
    const Batch &a = actual.micro_batches[i], &e = expected.micro_batches[i];
    EXPECT_EQ(a.num_rows, e.num_rows);
    EXPECT_EQ(a.tokens, e.tokens);
    EXPECT_EQ(a.targets, e.targets);
    EXPECT_EQ(a.segments.offsets, e.segments.offsets);
    EXPECT_EQ(a.sources, e.sources);
    EXPECT_EQ(a.segments.valid, e.segments.valid);
    EXPECT_EQ(a.mtp.tokens, e.mtp.tokens);
    EXPECT_EQ(a.mtp.targets, e.mtp.targets);
    EXPECT_EQ(a.mtp.segments.valid, e.mtp.segments.valid);
  }
  EXPECT_EQ(actual.counts.tokens, expected.counts.tokens);
  EXPECT_EQ(actual.counts.lm_targets, expected.counts.lm_targets);
  EXPECT_EQ(actual.counts.mtp_tokens, expected.counts.mtp_tokens);
  EXPECT_EQ(actual.counts.mtp_targets, expected.counts.mtp_targets);
}

TEST_F(BatchStreamTest, ReadsThePlannedRows) {
  const StepBatches step = BatchStream::read_step(datasets_, plan(8, 2), 5);
  ASSERT_EQ(step.micro_batches.size(), 4u);
  std::vector<int64_t> targets_of_sources(2);
  for (int64_t slot = 0; slot < 8; ++slot) {
    const MixturePick pick = Mixture({3, 1}).pick(5 * 8 + slot);
    const int64_t size = datasets_[pick.source].size();
    Batch row;
    datasets_[pick.source].append_row(shuffled_index(pick.index % size, size, 11, pick.index / size), row);
    const Batch& batch = step.micro_batches[slot / 2];
    EXPECT_EQ(batch.num_rows, 2);
    const auto begin = batch.tokens.begin() + slot % 2 * 8;
    EXPECT_EQ(std::vector<int64_t>(begin, begin + 8), row.tokens) << "slot " << slot;
    row.complete();
    const auto next = batch.mtp.tokens.begin() + slot % 2 * 8;
    EXPECT_EQ(std::vector<int64_t>(next, next + 8), row.mtp.tokens) << "slot " << slot;
    EXPECT_EQ(batch.sources[slot % 2], pick.source) << "slot " << slot;
    targets_of_sources[pick.source] += row.counts.lm_targets;
  }
  EXPECT_EQ(step.targets_of_sources, targets_of_sources);
}

TEST_F(BatchStreamTest, ReadsAheadWhatReadStepReads) {
  for (int64_t prefetch : {1, 2, 7}) {
    BatchPlan p = plan(6, 3, 2, 1);
    p.prefetch_steps = prefetch;
    BatchStream stream(datasets_, p, 4);
    for (int64_t step = 4; step < 24; ++step)
      expect_equal(stream.next_step(), BatchStream::read_step(datasets_, p, step));
    EXPECT_GE(stream.wait_seconds(), 0);
    EXPECT_LT(stream.wait_seconds(), 60);
  }
}

// Rows of one step over all ranks, in slot order.
std::vector<std::vector<int64_t>> rows_of_step(const std::vector<TokenDataset>& datasets, BatchPlan plan, int64_t step,
                                               TokenCounts& counts) {
  std::vector<std::vector<int64_t>> rows;
  for (plan.rank = 0; plan.rank < plan.num_ranks; ++plan.rank) {
    const StepBatches batches = BatchStream::read_step(datasets, plan, step);
    EXPECT_EQ(static_cast<int64_t>(batches.micro_batches.size()), plan.micro_batches_of(0));
    for (const Batch& batch : batches.micro_batches)
      for (int64_t row = 0; row < batch.num_rows; ++row)
        rows.emplace_back(batch.tokens.begin() + row * batch.row_tokens,
                          batch.tokens.begin() + (row + 1) * batch.row_tokens);
    counts.tokens += batches.counts.tokens;
    counts.lm_targets += batches.counts.lm_targets;
    counts.mtp_tokens += batches.counts.mtp_tokens;
    counts.mtp_targets += batches.counts.mtp_targets;
  }
  return rows;
}

TEST_F(BatchStreamTest, TrainsOnTheSameRowsForEveryLayout) {
  for (int64_t step : {0, 3, 17}) {
    TokenCounts expected_counts;
    const auto expected = rows_of_step(datasets_, plan(12, 12), step, expected_counts);
    EXPECT_EQ(expected.size(), 12u);
    for (int64_t ranks : {1, 2, 3, 4, 6, 12})
      for (int64_t micro : {1, 2, 3, 4, 6}) {
        if (12 % (ranks * micro) != 0) continue;
        TokenCounts counts;
        EXPECT_EQ(rows_of_step(datasets_, plan(12, micro, ranks), step, counts), expected) << ranks << " x " << micro;
        EXPECT_EQ(counts.tokens, expected_counts.tokens);
        EXPECT_EQ(counts.lm_targets, expected_counts.lm_targets);
        EXPECT_EQ(counts.mtp_tokens, expected_counts.mtp_tokens);
        EXPECT_EQ(counts.mtp_targets, expected_counts.mtp_targets);
      }
  }
}

// 3.5 epochs in batches that do not divide the data: after each whole epoch every row was read equally often.
TEST_F(BatchStreamTest, ReadsEveryRowOnceAnEpoch) {
  std::vector<TokenDataset> one;
  one.emplace_back("a", std::vector{paths_[0]}, 8, Split::kTrain, 0);
  ASSERT_EQ(one[0].size(), 13);
  BatchPlan p = plan(5, 5);
  p.mixture = Mixture(std::vector<double>{1});
  std::map<std::vector<int64_t>, int64_t> times_read;
  int64_t rows_read = 0;
  std::vector<std::vector<int64_t>> epoch, previous;
  for (int64_t step = 0; step < 10; ++step) {
    TokenCounts counts;
    for (const auto& row : rows_of_step(one, p, step, counts)) {
      ++times_read[row];
      epoch.push_back(row);
      if (++rows_read % 13 != 0) continue;
      EXPECT_EQ(times_read.size(), 13u);
      for (const auto& [tokens, times] : times_read) EXPECT_EQ(times, rows_read / 13);
      EXPECT_NE(epoch, previous) << "each epoch has its own order";
      previous.swap(epoch);
      epoch.clear();
    }
  }
  EXPECT_EQ(rows_read, 50);
}

// A run as the ledger sees it: rows in the order in which they are trained on, saved every few steps, killed again and
// again. Three sources of 60, 110 and 30 rows; the first id of a row says which it is.
class Ledger {
 public:
  static constexpr int64_t kGlobal = 8, kSteps = 88, kSaveEvery = 3;  // 704 rows, 3.5 epochs of all 200

  Ledger() {
    const std::vector<int64_t> sizes = {60, 110, 30};
    uint32_t first_id = 0;
    for (size_t i = 0; i < sizes.size(); ++i) {
      const std::string path = folder_ / concat(i, ".h5");
      datasets_.emplace_back(concat(i),
                             std::vector{write_shard(path, std::vector<int64_t>(sizes[i], kRowTokens), first_id)},
                             kRowTokens, Split::kTrain, 0);
      for (int64_t row = 0; row < sizes[i]; ++row, first_id += kRowTokens - 1)
        row_of_id_[first_id] = {static_cast<int64_t>(i), row};
    }
  }

  const std::vector<TokenDataset>& datasets() const { return datasets_; }
  static BatchPlan plan(int64_t ranks = 1, int64_t rank = 0) {
    BatchPlan plan;
    plan.global_batch_size = kGlobal;
    plan.micro_batch_size = 2;
    plan.num_ranks = ranks;
    plan.rank = rank;
    plan.seed = 5;
    plan.mixture =
        Mixture({{0, {2, 1, 1}}, {20 * kGlobal, {1, 0, 3}}, {31 * kGlobal, {1, 4, 0}}, {60 * kGlobal, {1, 3, 1}}});
    return plan;
  }

  // (source, row) of every row of the run, killed `kills` times on the way.
  std::vector<std::pair<int64_t, int64_t>> rows_of_run(int64_t ranks, int kills, uint32_t seed) {
    std::mt19937 random(seed);
    std::map<int64_t, std::string> lines;  // by step
    int64_t saved = 0;
    int killed = 0;
    for (bool done = false; !done;) {
      int64_t steps = kSteps;  // until it is killed
      if (killed < kills) steps = 1 + static_cast<int64_t>(random() % 7);
      int out[2];
      EXPECT_EQ(::pipe(out), 0);
      const pid_t child = ::fork();
      if (child == 0) train(ranks, saved, steps, out[1]);
      ::close(out[1]);
      std::string text;
      char buffer[4096];
      for (ssize_t n; (n = ::read(out[0], buffer, sizeof buffer)) > 0;) text.append(buffer, n);
      ::close(out[0]);
      int status = 0;
      ::waitpid(child, &status, 0);
      std::istringstream in(text);
      int64_t resumed_at = saved;
      for (std::string line; std::getline(in, line); ++resumed_at) {
        lines[resumed_at] = line;  // what was done behind the save is done again
        if ((resumed_at + 1) % kSaveEvery == 0) saved = resumed_at + 1;
      }
      done = WIFEXITED(status);
      killed += WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    }
    EXPECT_EQ(killed, kills);
    std::vector<std::pair<int64_t, int64_t>> rows;
    for (const auto& [step, line] : lines) {
      std::istringstream ids(line);
      for (uint32_t id; ids >> id;) rows.push_back(row_of_id_.at(id));
    }
    return rows;
  }

 private:
  static constexpr int64_t kRowTokens = 5;

  // All ranks of a job, a line of ids for every step. Killed after `steps` of them unless the run is complete.
  [[noreturn]] void train(int64_t ranks, int64_t first_step, int64_t steps, int out) const {
    std::vector<std::unique_ptr<BatchStream>> streams;
    for (int64_t rank = 0; rank < ranks; ++rank)
      streams.push_back(std::make_unique<BatchStream>(datasets_, plan(ranks, rank), first_step));
    for (int64_t step = first_step; step < kSteps; ++step) {
      if (step == first_step + steps) ::raise(SIGKILL);
      std::string line;
      for (const auto& stream : streams)
        for (const Batch& batch : stream->next_step().micro_batches)
          for (int64_t row = 0; row < batch.num_rows; ++row) line += concat(batch.tokens[row * kRowTokens], ' ');
      line += '\n';
      if (::write(out, line.data(), line.size()) != static_cast<ssize_t>(line.size())) ::_exit(1);
    }
    ::_exit(0);
  }

  TemporaryFolder folder_;
  std::vector<TokenDataset> datasets_;
  std::map<int64_t, std::pair<int64_t, int64_t>> row_of_id_;
};

TEST(BatchStreamLedger, TakesEveryRowOnceAnEpochWhateverIsKilledOnAnyNumberOfRanks) {
  Ledger ledger;
  const auto rows = ledger.rows_of_run(1, 0, 0);
  ASSERT_EQ(rows.size(), static_cast<size_t>(Ledger::kSteps * Ledger::kGlobal));
  for (const int64_t ranks : {1, 2, 4})
    EXPECT_EQ(ledger.rows_of_run(ranks, 20, static_cast<uint32_t>(ranks)), rows) << ranks;

  std::vector<std::vector<int64_t>> taken(3);  // rows of a source in the order in which they came
  for (const auto& [source, row] : rows) taken[source].push_back(row);
  const std::vector<int64_t> planned = Ledger::plan().mixture.taken(Ledger::kSteps * Ledger::kGlobal);
  for (int64_t source = 0; source < 3; ++source) {
    const int64_t size = ledger.datasets()[source].size(), count = static_cast<int64_t>(taken[source].size());
    EXPECT_EQ(count, planned[source]);
    EXPECT_GT(count, 2 * size) << source;
    for (int64_t begin = 0; begin < count; begin += size) {
      const int64_t end = std::min(begin + size, count);
      const std::set<int64_t> epoch(taken[source].begin() + begin, taken[source].begin() + end);
      EXPECT_EQ(static_cast<int64_t>(epoch.size()), end - begin) << "source " << source << " epoch " << begin / size;
    }
  }
  // The same rows as `braid data replay` names.
  for (size_t i = 0; i < rows.size(); ++i) {
    const PlannedRow planned_here = planned_row(ledger.datasets(), Ledger::plan(), static_cast<int64_t>(i));
    EXPECT_EQ(rows[i], std::pair(planned_here.source, planned_here.row)) << i;
  }
}

TEST_F(BatchStreamTest, HandsOnTheErrorOfItsThread) {
  std::vector<TokenDataset> one;
  one.emplace_back("a", std::vector{paths_[0]}, 8, Split::kTrain, 0);
  std::filesystem::resize_file(paths_[0], 100);
  BatchPlan p = plan(4, 4);
  p.mixture = Mixture(std::vector<double>{1});
  BatchStream stream(one, p, 0);
  for (int i = 0; i < 2; ++i) {
    const std::string message = message_of<DataError>([&] { stream.next_step(); });
    expect_contains(message, paths_[0] + ": was cut after it had been opened");
  }
}

TEST_F(BatchStreamTest, DeliversWhatItReadBeforeTheError) {
  // The last id of the last document is not the end-of-document id: one of the 13 rows cannot be read.
  std::string bytes = bytes_of(paths_[0]);
  const uint16_t last[] = {77, kEnd}, damaged[] = {77, 77};
  const size_t at = bytes.find(std::string(reinterpret_cast<const char*>(last), sizeof last));
  ASSERT_NE(at, std::string::npos);
  bytes.replace(at, sizeof damaged, reinterpret_cast<const char*>(damaged), sizeof damaged);
  write_bytes(paths_[0], bytes);
  std::vector<TokenDataset> one;
  one.emplace_back("a", std::vector{paths_[0]}, 8, Split::kTrain, 0);
  const int64_t position = 5;  // where it comes
  BatchPlan p = plan(1, 1);
  while (shuffled_index(position, 13, p.seed, 0) != 12) ++p.seed;
  p.mixture = Mixture(std::vector<double>{1});
  p.prefetch_steps = 20;
  BatchStream stream(one, p, 0);
  std::this_thread::sleep_for(std::chrono::milliseconds(50));  // lets the thread meet its error first
  for (int64_t step = 0; step < position; ++step) EXPECT_EQ(stream.next_step().step, step);
  EXPECT_THROW(stream.next_step(), DataError);
}

TEST_F(BatchStreamTest, StopsAtOnceWhileItIsReadingOrWaiting) {
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < 50; ++i) {
    BatchStream stream(datasets_, plan(6, 3), 0);
    if (i % 2 == 0) stream.next_step();
  }
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

TEST_F(BatchStreamTest, RefusesAPlanThatDoesNotWorkOut) {
  auto refusal = [&](auto change) {
    BatchPlan p = plan(12, 3, 2);
    change(p);
    return message_of<ConfigError>([&] { BatchStream(datasets_, p, 0); });
  };
  expect_contains(refusal([](BatchPlan& p) { p.micro_batch_size = 5; }),
                  "global_batch_size 12 is not a multiple of micro_batch_size 5 times 2 ranks");
  expect_contains(refusal([](BatchPlan& p) { p.micro_batch_size = 0; }), "micro_batch_size 0");
  expect_contains(refusal([](BatchPlan& p) { p.rank = 2; }), "rank 2 of 2");
  expect_contains(refusal([](BatchPlan& p) { p.prefetch_steps = 0; }), "prefetch_steps is 0");
  expect_contains(refusal([](BatchPlan& p) { p.mixture = Mixture(std::vector<double>{1}); }),
                  "1 weights for 2 data sources");
  std::vector<TokenDataset> held_out;
  held_out.emplace_back("none", std::vector{paths_[0]}, 8, Split::kValidation, 0);
  BatchPlan p = plan(4, 4);
  p.mixture = Mixture(std::vector<double>{1});
  expect_contains(message_of<DataError>([&] { BatchStream(held_out, p, 0); }), "none: has no rows to sample from");
}

}  // namespace
}  // namespace braid
