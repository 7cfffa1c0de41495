#pragma once

#include <chrono>
#include <string>

#include "kernels/core/context.h"
#include "parallel/communicator.h"

namespace braid {

// SIGTERM, SIGUSR1 and SIGINT ask for a stop. A run that is still starting has nothing to lose: from here on one ends
// the process at once, with exit code 75 and, if it is to speak, a sentence.
void end_on_stop_signal(bool speaks);
// From here on, until the process ends, they are remembered: the run saves and leaves, and what came too late for that
// changes nothing. A second SIGINT ends the process at once.
void remember_stop_signal();
int received_stop_signal();  // its number, 0 if none

// Everything that can ask a run to save and leave: a signal to any rank, a file <run_dir>/STOP, a limit on the time
// since the process started. Asked between steps and between the micro-batches of an evaluation, by every rank; all get
// the same answer.
class StopRequests {
 public:
  // From here on signals are remembered. time_limit_s: 0 for none.
  StopRequests(std::string run_dir, double time_limit_s, bool is_first_rank);

  // Why to stop now, as in "SIGTERM"; empty: go on. Once given, an answer stays. seconds_to_leave: what a stop at the
  // next such moment is expected to need until the run has ended, so that it is over within the limit.
  const std::string& agreed(Context& ctx, Communicator& world, double seconds_to_leave);
  // The file has served; a run that goes on must not find it again.
  void forget_file() const;

  static double process_seconds();  // since the process started

 private:
  int64_t own_reason(double seconds_to_leave);
  std::string path_;
  double time_limit_s_;
  bool is_first_rank_;
  std::chrono::steady_clock::time_point looked_{};
  std::string reason_;
};

}  // namespace braid
