#include "data/batch_stream.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "data/sample_order.h"
#include "kernels/core/error.h"

namespace braid {
namespace {

void check_plan(const std::vector<TokenDataset>& datasets, const BatchPlan& plan, int64_t first_step) {
  const int64_t rows = plan.global_batch_size.rows_after(first_step);
  check<ConfigError>(rows > 0 && plan.micro_batch_size > 0 && plan.num_ranks > 0 &&
                         rows % (plan.micro_batch_size * plan.num_ranks) == 0,
                     "global_batch_size ", rows, " is not a multiple of micro_batch_size ", plan.micro_batch_size,
                     " times ", plan.num_ranks, " ranks");
  check<ConfigError>(0 <= plan.rank && plan.rank < plan.num_ranks, "rank ", plan.rank, " of ", plan.num_ranks);
  check<ConfigError>(plan.prefetch_steps >= 1, "prefetch_steps is ", plan.prefetch_steps, ", expected at least 1");
  const auto num_sources = static_cast<int64_t>(datasets.size());
  check<ConfigError>(plan.mixture.num_sources() == num_sources, plan.mixture.num_sources(), " weights for ",
                     num_sources, " data sources");
  for (int64_t i = 0; i < num_sources; ++i)
    check<DataError>(!plan.mixture.uses(i) || datasets[i].size() > 0, datasets[i].name(),
                     ": has no rows to sample from");
}

}  // namespace

PlannedRow planned_row(const std::vector<TokenDataset>& datasets, const BatchPlan& plan, int64_t position) {
  const MixturePick pick = plan.mixture.pick(position);
  const int64_t size = datasets[pick.source].size(), epoch = pick.index / size;
  return {pick.source, shuffled_index(pick.index % size, size, plan.seed, static_cast<uint64_t>(epoch)), epoch};
}

void StepBatches::add(Batch batch, const RowShare& share) {
  batch.complete();
  if (!share.is_whole()) batch = share_of(batch, share);
  counts += batch.counts;
  for (int64_t row = 0; row < batch.num_rows; ++row) {
    const auto source = static_cast<size_t>(batch.sources[row]);
    if (source >= targets_of_sources.size()) targets_of_sources.resize(source + 1);
    const auto target = batch.targets.begin() + row * batch.row_tokens;
    targets_of_sources[source] += std::count_if(target, target + batch.row_tokens, [](int64_t id) { return id >= 0; });
  }
  micro_batches.push_back(std::move(batch));
}

StepBatches BatchStream::read_step(const std::vector<TokenDataset>& datasets, const BatchPlan& plan, int64_t step) {
  StepBatches result;
  result.step = step;
  const int64_t rows_per_rank = plan.global_batch_size.rows_after(step) / plan.num_ranks;
  int64_t position = plan.global_batch_size.rows_of_first(step) + plan.rank * rows_per_rank;
  for (int64_t micro = 0; micro < plan.micro_batches_of(step); ++micro) {
    Batch batch;
    for (int64_t row = 0; row < plan.micro_batch_size; ++row, ++position) {
      const PlannedRow planned = planned_row(datasets, plan, position);
      datasets[planned.source].append_row(planned.row, batch);
      batch.sources.push_back(planned.source);
    }
    result.add(std::move(batch), plan.share);
  }
  return result;
}

BatchStream::BatchStream(const std::vector<TokenDataset>& datasets, BatchPlan plan, int64_t first_step)
    : datasets_(datasets), plan_(std::move(plan)) {
  check_plan(datasets_, plan_, first_step);
  thread_ = std::thread(&BatchStream::read_ahead, this, first_step);
}

BatchStream::~BatchStream() {
  {
    std::scoped_lock lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void BatchStream::read_ahead(int64_t step) {
  try {
    for (;; ++step) {
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return stopping_ || static_cast<int64_t>(ready_.size()) < plan_.prefetch_steps; });
        if (stopping_) return;
      }
      StepBatches batches = read_step(datasets_, plan_, step);
      {
        std::scoped_lock lock(mutex_);
        ready_.push_back(std::move(batches));
      }
      changed_.notify_all();
    }
  } catch (...) {
    {
      std::scoped_lock lock(mutex_);
      error_ = std::current_exception();
    }
    changed_.notify_all();
  }
}

StepBatches BatchStream::next_step() {
  const auto start = std::chrono::steady_clock::now();
  StepBatches batches;
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !ready_.empty() || error_; });
    wait_seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (ready_.empty()) std::rethrow_exception(error_);
    batches = std::move(ready_.front());
    ready_.pop_front();
  }
  changed_.notify_all();
  return batches;
}

}  // namespace braid
