#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "parallel/progress.h"

namespace braid {

// How the names of the threads that watch, whose work is not their process's, begin: 15 characters at most.
inline constexpr const char* kWatchdogThread = "braid-watch";

// What the system says of a process: what tells a rank that works from one that sleeps for ever.
struct ProcessActivity {
  // Of its main thread, as in /proc/PID/stat: R, S, D (waits for a disk), T (stopped), Z. D also if it sleeps while
  // another of its threads waits for a disk.
  char state = '?';
  int64_t work = 0;  // grows while it computes, reads or writes; watchdogs do not count
  int64_t main_ns =
      0;  // for how long its main thread has run: a rank that waits in MPI looks for messages all the time
  // It computes, or would if it were given a processor: on a crowded host that can take seconds.
  bool is_ready() const { return state == 'R'; }
};
ProcessActivity activity_of(int pid);

// A collective that a rank has begun: of which communicator, its number there, and what its ranks have to agree on.
struct SeenCall {
  int64_t group = 0, number = 0;
  Collective collective = Collective::kBarrier;
  int group_size = 1;
};

// One rank, as a verdict sees it.
struct RankView {
  int rank = 0;
  Phase phase = Phase::kStart;
  int64_t step = 0;
  bool in_collective = false;
  Collective collective = Collective::kBarrier;  // the last one, number `call`
  int64_t call = 0;
  std::vector<SeenCall> calls;  // the last collectives, oldest first
  bool exists = true, stopped = false;
  int64_t quiet_ms = 0;   // since its phase, step or collective changed
  int64_t asleep_ms = 0;  // since it computed, read or wrote anything
  int64_t still_ms = 0;   // since its main thread ran at all
  int64_t longest_step_ms = 0;
  std::string slow_read;  // the file that its process waits for, if any, and what is read of it
  int64_t slow_read_ms = 0;
};

// One sentence that names who is to blame and for what, if the ranks of a host have been at a stand for timeout_ms;
// empty otherwise: "rank 1 is stopped (SIGSTOP or a debugger): phase step, step 7, before collective 123; …". A rank
// that is gone is named at once. A rank that works is given more time: in a step five times the longest so far,
// elsewhere, and before the first step has ended, any.
std::string verdict(const std::vector<RankView>& ranks, int64_t timeout_ms);

// Watches the ranks of this host from a thread of its own, on every rank, for as long as it lives. When they stand
// still, one of them tells `end` the verdict, which ends the process; the others wait a moment and end as well. A
// launcher that goes ends them, too.
class Watchdog {
 public:
  using End = std::function<void(const std::string& verdict, const ProgressBoard& board, bool speaks)>;
  enum class Launcher { kMayGo, kIsWatched };
  Watchdog(ProgressBoard& board, double timeout_s, Launcher launcher, End end);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

 private:
  void watch();
  std::vector<RankView> look();
  ProgressBoard& board_;
  int64_t timeout_ms_;
  End end_;
  int launcher_;  // process id; 0 if it is not watched
  struct Seen {
    int64_t changes = -1, changed_ms = 0, work = -1, worked_ms = 0, main_ns = -1, ran_ms = 0;
    bool existed = false;
  };
  std::vector<Seen> seen_;
  std::mutex mutex_;
  std::condition_variable ending_changed_;
  bool ending_ = false;
  std::thread thread_;
};

// The last collectives of every rank of the host as JSON, for the crash record.
std::string flight_record(const ProgressBoard& board, const std::string& verdict);

}  // namespace braid
