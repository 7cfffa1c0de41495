#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "kernels/core/file_read.h"

namespace braid {

// When a file that is opened or read is told of: after kFirst seconds, then each time it has taken twice as long, and
// once it is over.
class SlowReads {
 public:
  static constexpr double kFirst = 5;
  // In words, if there is something to tell: "a/b.h5: no answer of its disk for 5 s: read 4096 bytes at byte 512".
  // `longest` is what longest_read() says at `now_ns`, of steady_clock.
  std::string look(const std::optional<PendingRead>& longest, int64_t now_ns);

 private:
  std::optional<PendingRead> told_;
  double next_s_ = kFirst;
};

// Looks at what this process reads from a thread of its own, once a second. A read that takes long is told of, and
// stands in own_progress() for the watchdogs of the host, who name it where they end the run.
class ReadWatch {
 public:
  explicit ReadWatch(std::function<void(const std::string& text)> tell);
  ~ReadWatch();
  ReadWatch(const ReadWatch&) = delete;
  ReadWatch& operator=(const ReadWatch&) = delete;

 private:
  void watch();
  std::function<void(const std::string&)> tell_;
  std::mutex mutex_;
  std::condition_variable ending_changed_;
  bool ending_ = false;
  std::thread thread_;
};

}  // namespace braid
