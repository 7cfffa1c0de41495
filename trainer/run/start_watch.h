#pragma once

#include <map>
#include <string>
#include <vector>

namespace braid {

// Ranks meet in the start of MPI, which waits for all of them for ever. Until they have met, a rank knows of the others
// of its host only what the system shows: that the same launcher started them, whether it runs, and the name of the
// thread that watches, by which it says that it has come to meet them.

// One process that the launcher started on this host.
struct Sibling {
  int rank = 0, pid = 0;
  bool stopped = false;  // SIGSTOP or a debugger
  bool asleep = false;   // its main thread waits for something that is no disk
  // A process that watches nothing, a shell around a rank say, is unknown.
  enum class Place { kUnknown, kOnItsWay, kMeets };
  Place place = Place::kUnknown;
  int64_t work = 0;  // see ProcessActivity
};
// In rank order, with this process; none where the system does not list the children of a process.
std::vector<Sibling> siblings();

// Which of them have been stopped, or asleep without any work while another waits for them in the start of MPI, for
// timeout_ms, as seen at now_ms and in the calls before.
class StandingSiblings {
 public:
  explicit StandingSiblings(int64_t timeout_ms) : timeout_ms_(timeout_ms) {}
  std::vector<Sibling> for_too_long(const std::vector<Sibling>& siblings, int64_t now_ms);
  void forget() { since_.clear(); }

 private:
  struct Since {
    int64_t ms = 0;
    bool stopped = false;
    int64_t work = 0;
  };
  int64_t timeout_ms_;
  std::map<int, Since> since_;  // by rank
};

// From here on a thread ends this process with kCommunication once another rank of the host has stood still for
// timeout_s; the lowest rank that does not says which. Nothing for timeout_s 0.
void begin_start_watch(double timeout_s);
// This rank goes into the start of MPI, where it may sleep until all others have
// come. Nothing if there was no beginning.
void now_meets();
// The ranks have met, and a Watchdog sees more. Nothing if there was no beginning.
void end_start_watch();

}  // namespace braid
