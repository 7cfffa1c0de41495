#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "trainer/checkpoint/checkpoint.h"
#include "trainer/spike_rule.h"
#include "trainer/train_step.h"

namespace braid {

// What becomes of a step whose loss or gradient is not finite, or stands out from the steps before.
//
// One that is not finite is never applied. It is computed once more: if it is finite then, a device or a memory failed,
// and the run goes on as if nothing had been; otherwise the step is left out. One that stands out is computed once
// more, too, and what comes out then is applied: the same, if it is the data's. So no bit of a run depends on how many
// steps the rule has seen, unless the run may go back (run.rewind_steps): then nothing is applied that stands out
// twice. Every rank decides alike, as all have the same results.
class StepGuard {
 public:
  static constexpr int64_t kSkipsInARow = 3, kSkips = 10, kWindow = 1000;

  struct Voice {
    std::function<void(const std::string& text)> say;                             // on the console
    std::function<void(const std::string& event, const std::string& text)> note;  // in the run's events
  };
  explicit StepGuard(Voice voice) : voice_(std::move(voice)) {}

  struct Outcome {
    StepResult result;
    bool goes_back = false;  // it was not applied, and the run is to go back
  };
  // Computes a step by compute(spikes), which applies no update that is not finite, nor one that stands out by `spikes`
  // where that is given, and changes nothing then. A run that may not go back ends with more than kSkips steps left out
  // of the last kWindow, or kSkipsInARow in a row.   Errors: NumericsError, on every rank.
  Outcome run(int64_t step, bool may_go_back, const std::function<StepResult(const SpikeRule* spikes)>& compute);

  // What it has seen, for another start to go on with.
  void store(CheckpointInfo& info) const;
  void restore(const CheckpointInfo& info);

 private:
  // Of a step left out: whether the run is to go back.
  bool leave_out(int64_t step, bool may_go_back, const std::string& problem);
  // A step was computed twice, and the second result applied.
  void tell_what_again_showed(int64_t step, const StepResult& first, const StepResult& second) const;

  Voice voice_;
  SpikeRule spikes_;
  std::vector<int64_t> skipped_;  // steps without an update, of the last kWindow
};

// Why a step was not applied, in words.
std::string trouble_of(int64_t step, const StepResult& result);

}  // namespace braid
