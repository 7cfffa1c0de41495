#include "trainer/optimizer/schedule.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <numbers>

namespace braid {

double lr_factor(const ScheduleConfig& schedule, int64_t step, int64_t run_steps) {
  assert(step >= 1);
  if (step <= schedule.warmup_steps) return static_cast<double>(step) / static_cast<double>(schedule.warmup_steps);

  const bool wsd = schedule.kind == ScheduleKind::kWsd;
  int64_t begin = schedule.warmup_steps;  // the last step at the peak
  int64_t end = run_steps;                // the first step at the minimum
  if (wsd) {
    const int64_t length = schedule.decay_steps > 0 ? schedule.decay_steps : std::max<int64_t>(1, run_steps / 10);
    begin = std::max(begin, run_steps - length);
  } else if (schedule.decay_steps > 0) {
    end = schedule.decay_steps;
  }
  if (schedule.kind == ScheduleKind::kConstant || (wsd && step <= begin)) return 1;
  if (step >= end) return schedule.min_lr_ratio;

  const double r = static_cast<double>(step - begin) / static_cast<double>(end - begin);
  const double height = schedule.kind == ScheduleKind::kCosine ? (1 + std::cos(std::numbers::pi * r)) / 2 : 1 - r;
  return schedule.min_lr_ratio + (1 - schedule.min_lr_ratio) * height;
}

}  // namespace braid
