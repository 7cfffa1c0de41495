#pragma once

#include <array>
#include <cstdint>

#include "kernels/core/enum_names.h"

namespace braid {

enum class ScheduleKind { kConstant, kLinear, kCosine, kWsd };
template <>
struct EnumNames<ScheduleKind> {
  static constexpr std::array kNames = {"constant", "linear", "cosine", "wsd"};
};

struct ScheduleConfig {
  ScheduleKind kind = ScheduleKind::kCosine;
  int64_t warmup_steps = 0;
  int64_t decay_steps = 0;
  double min_lr_ratio = 0.1;

  template <class Visit>
  void visit(Visit&& key) {
    key("kind", kind, "how the learning rate falls after the warm-up");
    key("warmup_steps", warmup_steps, "steps in which the learning rate rises linearly from 0");
    key("decay_steps", decay_steps,
        "linear, cosine: steps until the minimum is reached, warm-up included; wsd: length of the final decay; "
        "0 = to the end of the run (wsd: a tenth of it)");
    key("min_lr_ratio", min_lr_ratio, "smallest learning rate, as a share of the peak");
  }
};

// Factor on the peak learning rate for update `step` (1 = first) of a run of `run_steps`:
//   warm-up  step / warmup_steps, reaching 1 at step = warmup_steps
//   linear   1 -> min over the rest;   cosine  min + (1 - min) (1 + cos(pi r)) / 2
//   wsd      1 until the last decay_steps, then linearly to min
double lr_factor(const ScheduleConfig& schedule, int64_t step, int64_t run_steps);

}  // namespace braid
