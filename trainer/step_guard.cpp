#include "trainer/step_guard.h"

#include <algorithm>
#include <optional>

#include "kernels/core/error.h"
#include "parallel/rank_text.h"

namespace braid {

std::string trouble_of(int64_t step, const StepResult& result) {
  return result.problem.empty() ? concat("step ", step, ": ", result.spike) : result.problem;
}

StepGuard::Outcome StepGuard::run(int64_t step, bool may_go_back,
                                  const std::function<StepResult(const SpikeRule*)>& compute) {
  StepResult first = compute(&spikes_);
  if (first.is_applied()) {
    spikes_.add(first.loss_lm, first.grad_norm);
    return {std::move(first)};
  }
  voice_.say(trouble_of(step, first) + "; it is computed again");
  StepResult second = compute(may_go_back ? &spikes_ : nullptr);
  if (second.is_applied()) {
    tell_what_again_showed(step, first, second);
    spikes_.add(second.loss_lm, second.grad_norm);
    return {std::move(second)};
  }
  const bool goes_back = second.problem.empty() || leave_out(step, may_go_back, second.problem);
  return {std::move(second), goes_back};
}

bool StepGuard::leave_out(int64_t step, bool may_go_back, const std::string& problem) {
  skipped_.push_back(step);
  std::erase_if(skipped_, [&](int64_t s) { return s <= step - kWindow; });
  const bool too_many_in_a_row = std::count_if(skipped_.begin(), skipped_.end(),
                                               [&](int64_t s) { return s > step - kSkipsInARow; }) >= kSkipsInARow;
  if (too_many_in_a_row && may_go_back) return true;
  if (too_many_in_a_row || std::ssize(skipped_) > kSkips)
    throw_on_every_rank(
        NumericsError(concat(problem, ", also when computed again; no update was applied, and ", skipped_.size(),
                             " of the last ", std::min(step, kWindow), " steps were like this")));
  voice_.say(problem + ", also when computed again; the step is left out");
  voice_.note("skipped_step", problem);
  return false;
}

void StepGuard::tell_what_again_showed(int64_t step, const StepResult& first, const StepResult& second) const {
  const bool is_same = first.loss_lm == second.loss_lm && first.grad_norm == second.grad_norm;
  if (is_same) {
    voice_.say("the same comes out again: it is the data or the state of the run, and the update is applied");
    voice_.note("spike", first.spike);
    return;
  }
  const std::string what = first.problem.empty() ? "other than the first time" : "finite";
  voice_.say(concat("step ", step, " is ", what,
                    " when it is computed again: a device or a memory failed, and the result was thrown away"));
  voice_.note("transient_fault", first.problem.empty()
                                     ? first.spike + "; the second result was another one"
                                     : "a result that was not finite was finite when it was computed again");
}

void StepGuard::store(CheckpointInfo& info) const {
  info.recent_losses = spikes_.losses();
  info.recent_grad_norms = spikes_.grad_norms();
  info.skipped_steps = skipped_;
}

void StepGuard::restore(const CheckpointInfo& info) {
  for (size_t i = 0; i < info.recent_losses.size(); ++i) spikes_.add(info.recent_losses[i], info.recent_grad_norms[i]);
  skipped_ = info.skipped_steps;
}

}  // namespace braid
