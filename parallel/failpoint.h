#pragma once

#include <cstdint>

namespace braid {

// Faults on purpose, for tests. Compiled in and off, unless the environment says
//   BRAID_FAULT="site=step.begin,rank=1,nth=3,do=kill"     several, separated by ';'
// rank: of the launcher, all if left out; nth: the nth time that the rank comes by, 1 if left out; every=yes: from then
// on each time. do: kill | stop | segv | exit=N | hang | delay=SECONDS | oom   happen there;   nan | inf | flip |
// errno=N | abort   are for the caller. Sites: init, data, step.begin, loss, optim, scratch, eval, save, load, end,
// comm.all_reduce and so on for every collective; nccl.all_reduce for those of
// GPUs, which abort makes fail (ncclCommAbort).
enum class FaultKind { kNone, kNan, kInf, kFlip, kErrno, kAbort };
struct Fault {
  FaultKind kind = FaultKind::kNone;
  int64_t value = 0;
};

// Errors: ConfigError (in the first call of all) if BRAID_FAULT is not understood; std::bad_alloc for oom.
Fault fault_point(const char* site);
// The value, or what a fault at this site puts in its place.
double with_fault(const char* site, double value);

}  // namespace braid
