#pragma once

namespace braid {

// While it lives, SIGTERM, SIGUSR1 and SIGINT ask for a stop instead of ending the process: the training loop finishes
// its step, saves and leaves. A second SIGINT ends the process at once. SIGPIPE is ignored: a closed log pipe does not
// stop training.
class StopSignal {
 public:
  StopSignal();
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;
  static int received();  // number of the signal, 0 if none
};

}  // namespace braid
