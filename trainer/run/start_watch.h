#pragma once

#include <map>
#include <string>
#include <vector>

namespace braid {

// Ranks meet in the start of MPI, which waits for all of them for ever. Until they have met, a rank knows of the others
// of its host only what the system shows: that the same launcher started them.

// One process that the launcher started on this host.
struct Sibling {
  int rank = 0, pid = 0;
  bool stopped = false;
};
// In rank order, with this process; none where the system does not list the children of a process.
std::vector<Sibling> siblings();

// Which of them have been stopped (SIGSTOP or a debugger) for timeout_ms, as seen at now_ms and in the calls before.
class StoppedSiblings {
 public:
  explicit StoppedSiblings(int64_t timeout_ms) : timeout_ms_(timeout_ms) {}
  std::vector<int> for_too_long(const std::vector<Sibling>& siblings, int64_t now_ms);
  void forget() { since_ms_.clear(); }

 private:
  int64_t timeout_ms_;
  std::map<int, int64_t> since_ms_;  // by rank
};

// From here on a thread ends this process with kCommunication once another rank of the host has been stopped for
// timeout_s; the lowest rank that runs says which. Nothing for timeout_s 0.
void begin_start_watch(double timeout_s);
// The ranks have met, and a Watchdog sees more. Nothing if there was no beginning.
void end_start_watch();

}  // namespace braid
