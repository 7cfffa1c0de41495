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

class StartWatch {
 public:
  explicit StartWatch(double timeout_s)
      : timeout_ms_(static_cast<int64_t>(timeout_s * 1e3)), thread_([this] { watch(); }) {}
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
    pthread_setname_np(pthread_self(), kWatchdogThread);
    const auto pause = std::chrono::milliseconds(std::clamp<int64_t>(timeout_ms_ / 20, 50, 1000));
    StoppedSiblings stopped(timeout_ms_);
    std::unique_lock lock(mutex_);
    const auto ends_within = [&](std::chrono::milliseconds time) {
      return ending_changed_.wait_for(lock, time, [this] { return ending_; });
    };
    for (int64_t before = now_ms(); !ends_within(pause);) {
      const int64_t now = now_ms();
      if (now - before > 3 * pause.count() + 1000) stopped.forget();  // it was stopped itself
      before = now;
      const std::vector<Sibling> all = siblings();
      const std::vector<int> culprits = stopped.for_too_long(all, now);
      if (culprits.empty()) continue;
      const auto speaker = std::find_if(all.begin(), all.end(), [](const Sibling& s) { return !s.stopped; });
      const bool speaks = speaker != all.end() && speaker->pid == getpid();
      if (!speaks && ends_within(std::chrono::seconds(5))) return;
      end_of_start(concat(rank_list(culprits), " of ", host_name(), culprits.size() == 1 ? " " : " each ",
                          "is stopped, by SIGSTOP or a debugger: phase start, before the ranks have met"),
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
    std::istringstream children(file_text(thread->path().string() + "/children"));
    for (int pid = 0; children >> pid;) {
      const std::optional<int> rank = rank_in(file_text(concat("/proc/", pid, "/environ")));
      if (!rank) continue;
      const char state = activity_of(pid).state;
      found.push_back({*rank, pid, state == 'T' || state == 't'});
    }
  }
  std::sort(found.begin(), found.end(), [](const Sibling& a, const Sibling& b) { return a.rank < b.rank; });
  return found;
}

std::vector<int> StoppedSiblings::for_too_long(const std::vector<Sibling>& siblings, int64_t now_ms) {
  std::vector<int> ranks;
  for (const Sibling& s : siblings) {
    if (!s.stopped) since_ms_.erase(s.rank);
    else if (now_ms - since_ms_.try_emplace(s.rank, now_ms).first->second >= timeout_ms_) ranks.push_back(s.rank);
  }
  return ranks;
}

void begin_start_watch(double timeout_s) {
  if (timeout_s > 0) start_watch() = std::make_unique<StartWatch>(timeout_s);
}

void end_start_watch() { start_watch().reset(); }

}  // namespace braid
