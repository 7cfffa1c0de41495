#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>
#include <vector>

namespace braid {

// Rows of every step of a run, and which of the stream of samples they are: those behind the step before, but for what
// is left out on purpose. A resume may change the rows of a step; the stream then goes on where it was, so the steps
// before must be known to say where a step begins.
class BatchSizes {
 public:
  using Change = std::array<int64_t, 2>;   // steps done when it begins, rows of a step from there on
  using LeftOut = std::array<int64_t, 2>;  // steps done before, rows behind theirs that no step takes

  BatchSizes(int64_t rows = 0) : changes_{{0, rows}} {}
  // The first begins at 0, each behind the one before.
  explicit BatchSizes(std::vector<Change> changes) : changes_(std::move(changes)) {}

  // Those after the first `steps` steps have that many rows.
  void change(int64_t steps, int64_t rows) {
    while (changes_.size() > 1 && changes_.back()[0] >= steps) changes_.pop_back();
    if (steps <= changes_.back()[0]) changes_.back() = {0, rows};
    else if (rows != changes_.back()[1]) changes_.push_back({steps, rows});
  }
  // Behind the first `steps` steps, at or after those of the last such call.
  void leave_out(int64_t steps, int64_t rows) {
    if (!left_out_.empty() && left_out_.back()[0] == steps) left_out_.back()[1] += rows;
    else left_out_.push_back({steps, rows});
  }
  // Of the step behind the first `steps` steps.
  int64_t rows_after(int64_t steps) const {
    const auto later = [](int64_t at, const Change& change) { return at < change[0]; };
    return (*(std::upper_bound(changes_.begin(), changes_.end(), steps, later) - 1))[1];
  }
  // Taken by the first `steps` steps or left out: the sample of the stream where the next step begins.
  int64_t rows_of_first(int64_t steps) const {
    int64_t rows = 0;
    for (const LeftOut& l : left_out_)
      if (l[0] <= steps) rows += l[1];
    for (size_t i = 0; i < changes_.size() && changes_[i][0] < steps; ++i) {
      const int64_t end = i + 1 < changes_.size() ? std::min(steps, changes_[i + 1][0]) : steps;
      rows += (end - changes_[i][0]) * changes_[i][1];
    }
    return rows;
  }
  // Where step number `step`, counted from 1, ends.
  int64_t end_of(int64_t step) const { return rows_of_first(step - 1) + rows_after(step - 1); }
  const std::vector<Change>& changes() const { return changes_; }
  const std::vector<LeftOut>& left_out() const { return left_out_; }

 private:
  std::vector<LeftOut> left_out_;
  std::vector<Change> changes_;
};

}  // namespace braid
