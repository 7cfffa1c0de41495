#include "trainer/run/read_watch.h"

#include <pthread.h>

#include <chrono>
#include <cmath>
#include <csignal>

#include "kernels/core/error.h"
#include "parallel/progress.h"
#include "trainer/run/watchdog.h"

namespace braid {
namespace {

bool is_same(const PendingRead& a, const PendingRead& b) { return a.begin_ns == b.begin_ns && a.path == b.path; }

std::string whole_seconds(double seconds) { return concat(static_cast<int64_t>(seconds), " s"); }

}  // namespace

std::string SlowReads::look(const std::optional<PendingRead>& longest, int64_t now_ns) {
  std::string text;
  if (told_ && !(longest && is_same(*longest, *told_))) {
    text = concat(told_->path, ": its disk answered again within ",
                  whole_seconds(std::ceil(double(now_ns - told_->begin_ns) / 1e9)));
    told_.reset();
    next_s_ = kFirst;
  }
  if (!longest || longest->seconds < next_s_) return text;
  told_ = longest;
  while (next_s_ <= longest->seconds) next_s_ *= 2;
  return concat(longest->path, ": no answer of its disk for ", whole_seconds(longest->seconds), ": ", longest->what);
}

ReadWatch::ReadWatch(std::function<void(const std::string& text)> tell)
    : tell_(std::move(tell)), thread_([this] { watch(); }) {}

ReadWatch::~ReadWatch() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  ending_changed_.notify_all();
  thread_.join();
}

void ReadWatch::watch() {
  pthread_setname_np(pthread_self(), kWatchdogThread);
  sigset_t all;  // signals interrupt what the command waits for, not this
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, nullptr);
  SlowReads slow;
  std::unique_lock lock(mutex_);
  for (bool last = false; !last;) {  // the last look tells of a wait that has ended since the one before
    last = ending_changed_.wait_for(lock, std::chrono::seconds(1), [this] { return ending_; });
    const std::optional<PendingRead> longest = longest_read();
    const bool is_slow = longest && longest->seconds >= 1;
    own_progress().slow_read.store(is_slow ? concat(longest->path, ", ", longest->what) : "",
                                   is_slow ? longest->begin_ns / 1'000'000 : 0);
    const std::string text = slow.look(longest, now_ms() * 1'000'000);
    if (text.empty()) continue;
    lock.unlock();  // a console may take nothing for a while
    tell_(text);
    lock.lock();
  }
  own_progress().slow_read.store("", 0);
}

}  // namespace braid
