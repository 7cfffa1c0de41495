#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "data/batch_sizes.h"
#include "data/mixture.h"
#include "data/token_dataset.h"
#include "kernels/core/batch.h"

namespace braid {

// Which rows a step trains on: the samples of the mixture in their order, the rows of one step behind those of the
// other, and sample i of a source is row shuffled_index(i mod size, size, seed, epoch i / size). A pure function of
// (seed, batch sizes, step, slot): nothing that depends on ranks or micro-batches.
struct BatchPlan {
  BatchSizes global_batch_size;
  int64_t micro_batch_size = 0;     // rows
  int64_t num_ranks = 1, rank = 0;  // those who share rows are one
  RowShare share;                   // of every row
  uint64_t seed = 0;
  Mixture mixture;  // of the datasets
  int64_t prefetch_steps = 2;
  // Rank r owns slots [r, r + 1) * global / ranks, cut into micro-batches in order.
  int64_t micro_batches_of(int64_t step) const {
    return global_batch_size.rows_after(step) / (micro_batch_size * num_ranks);
  }
};

// Where sample `position` of the mixture comes from.
struct PlannedRow {
  int64_t source, row;
  int64_t epoch;  // how often the source was read to its end before
};
PlannedRow planned_row(const std::vector<TokenDataset>& datasets, const BatchPlan& plan, int64_t position);

// The micro-batches of one rank and one step.
struct StepBatches {
  int64_t step = 0;
  std::vector<Batch> micro_batches;
  TokenCounts counts;                       // of this rank
  std::vector<int64_t> targets_of_sources;  // its tokens with a target, by source, up to the last that has rows here
  void add(Batch batch, const RowShare& share = {});  // with all its rows, whole; completes it and keeps the share
};

// Reads ahead on a thread. An exception of that thread is rethrown by next_step.
class BatchStream {
 public:
  BatchStream(const std::vector<TokenDataset>& datasets, BatchPlan plan, int64_t first_step);
  ~BatchStream();
  BatchStream(const BatchStream&) = delete;
  BatchStream& operator=(const BatchStream&) = delete;

  StepBatches next_step();
  double wait_seconds() const { return wait_seconds_; }  // time that next_step has waited for data so far

  // What the thread computes; also the reference for tests.
  static StepBatches read_step(const std::vector<TokenDataset>& datasets, const BatchPlan& plan, int64_t step);

 private:
  void read_ahead(int64_t step);

  const std::vector<TokenDataset>& datasets_;
  BatchPlan plan_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<StepBatches> ready_;
  std::exception_ptr error_;
  bool stopping_ = false;
  double wait_seconds_ = 0;
  std::thread thread_;
};

}  // namespace braid
