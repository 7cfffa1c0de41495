#include "trainer/run/start_watch.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <sstream>
#include <thread>

#include "kernels/core/error.h"
#include "kernels/core/file_text.h"
#include "kernels/core/process_info.h"
#include "kernels/core/stream.h"
#include "parallel/progress.h"
#include "parallel/rank_text.h"
#include "trainer/run/error_record.h"
#include "trainer/run/watchdog.h"

namespace braid {
namespace {

namespace fs = std::filesystem;

// The rank that a launcher gave a process, from its environment: NAME=value, each ended by a zero byte.
std::optional<int> rank_in(const std::string& environment) {
  const std::string variables = '\0' + environment;
  for (const char* name : {"OMPI_COMM_WORLD_RANK=", "PMI_RANK=", "SLURM_PROCID="})
    if (const size_t at = variables.find(concat('\0', name)); at != variables.npos)
      return std::atoi(variables.c_str() + at + 1 + std::strlen(name));
  return std::nullopt;
}

// What the thread that watches is called from now_meets() on. It begins as kWatchdogThread does.
constexpr const char* kMeetingThread = "braid-watch:met";

Sibling::Place place_of(int pid) {
  std::error_code error;
  Sibling::Place place = Sibling::Place::kUnknown;
  for (fs::directory_iterator thread(concat("/proc/", pid, "/task"), error), end; !error && thread != end;
       thread.increment(error)) {
    const std::string name = file_text(thread->path().string() + "/comm");
    if (name.starts_with(kMeetingThread)) return Sibling::Place::kMeets;
    // Unless another thread, of those that watch, says more.
    if (name.starts_with(kWatchdogThread)) place = Sibling::Place::kOnItsWay;
  }
  return place;
}

class StartWatch {
 public:
  explicit StartWatch(double timeout_s)
      : timeout_ms_(static_cast<int64_t>(timeout_s * 1e3)), thread_([this] { watch(); }) {
    pthread_setname_np(thread_.native_handle(), kWatchdogThread);
  }
  void meets() { pthread_setname_np(thread_.native_handle(), kMeetingThread); }
  ~StartWatch() {
    {
      const std::lock_guard lock(mutex_);
      ending_ = true;
    }
    ending_changed_.notify_all();
    thread_.join();
  }

 private:
  void watch() {
    const auto pause = std::chrono::milliseconds(std::clamp<int64_t>(timeout_ms_ / 20, 50, 1000));
    StandingSiblings standing(timeout_ms_);
    std::unique_lock lock(mutex_);
    const auto ends_within = [&](std::chrono::milliseconds time) {
      return ending_changed_.wait_for(lock, time, [this] { return ending_; });
    };
    for (int64_t before = now_ms(); !ends_within(pause);) {
      const int64_t now = now_ms();
      if (now - before > 3 * pause.count() + 1000) standing.forget();  // it was stopped itself
      before = now;
      const std::vector<Sibling> all = siblings();
      std::vector<Sibling> culprits = standing.for_too_long(all, now);
      if (culprits.empty()) continue;
      const bool stopped = culprits.front().stopped;  // the others may wait for these
      std::erase_if(culprits, [&](const Sibling& s) { return s.stopped != stopped; });
      std::vector<int> ranks;
      for (const Sibling& s : culprits) ranks.push_back(s.rank);
      const auto speaker = std::find_if(all.begin(), all.end(), [&](const Sibling& s) {
        return !s.stopped && std::find(ranks.begin(), ranks.end(), s.rank) == ranks.end();
      });
      const bool speaks = speaker != all.end() && speaker->pid == getpid();
      if (!speaks && ends_within(std::chrono::seconds(5))) return;
      end_of_start(concat(rank_list(ranks), " of ", host_name(), ranks.size() == 1 ? " " : " each ",
                          stopped ? "is stopped, by SIGSTOP or a debugger"
                                  : concat("does nothing for ", timeout_ms_ / 1000, " s while others wait for it"),
                          ": phase start, before the ranks have met"),
                   speaks);
    }
  }

  int64_t timeout_ms_;
  std::mutex mutex_;
  std::condition_variable ending_changed_;
  bool ending_ = false;
  std::thread thread_;
};

std::unique_ptr<StartWatch>& start_watch() {
  static std::unique_ptr<StartWatch> watch;
  return watch;
}

}  // namespace

std::vector<Sibling> siblings() {
  std::vector<Sibling> found;
  std::error_code error;
  for (fs::directory_iterator thread(concat("/proc/", getppid(), "/task"), error), end; !error && thread != end;
       thread.increment(error)) {
    Loud<std::istringstream> children(file_text(thread->path().string() + "/children"));
    for (int pid = 0; children >> pid;) {
      const std::optional<int> rank = rank_in(file_text(concat("/proc/", pid, "/environ")));
      if (!rank) continue;
      const ProcessActivity activity = activity_of(pid);
      found.push_back({*rank, pid, activity.state == 'T' || activity.state == 't', activity.state == 'S', place_of(pid),
                       activity.work});
    }
  }
  std::sort(found.begin(), found.end(), [](const Sibling& a, const Sibling& b) { return a.rank < b.rank; });
  return found;
}

std::vector<Sibling> StandingSiblings::for_too_long(const std::vector<Sibling>& siblings, int64_t now_ms) {
  const bool waited_for =
      std::any_of(siblings.begin(), siblings.end(), [](const Sibling& s) { return s.place == Sibling::Place::kMeets; });
  std::vector<Sibling> found;
  for (const Sibling& s : siblings) {
    if (!s.stopped && !(waited_for && s.asleep && s.place == Sibling::Place::kOnItsWay)) {
      since_.erase(s.rank);
      continue;
    }
    Since& since = since_.try_emplace(s.rank, Since{now_ms, s.stopped, s.work}).first->second;
    if (since.stopped != s.stopped || since.work != s.work) since = {now_ms, s.stopped, s.work};
    if (now_ms - since.ms >= timeout_ms_) found.push_back(s);
  }
  std::stable_partition(found.begin(), found.end(), [](const Sibling& s) { return s.stopped; });
  return found;
}

void begin_start_watch(double timeout_s) {
  if (timeout_s > 0) start_watch() = std::make_unique<StartWatch>(timeout_s);
}

void now_meets() {
  if (start_watch()) start_watch()->meets();
}

void end_start_watch() { start_watch().reset(); }

}  // namespace braid
