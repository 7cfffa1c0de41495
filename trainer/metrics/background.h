#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

namespace braid {

// One thread that does what it is given, in order, so that a slow disk does not hold up a step.
class Background {
 public:
  Background();
  ~Background();  // waits for all of it
  Background(const Background&) = delete;
  Background& operator=(const Background&) = delete;

  // Never waits.   Errors: IoError if kMost pieces of work are waiting already; what a piece of work threw before.
  static constexpr size_t kMost = 8192;
  void post(std::function<void()> work);
  // Until all of it is done.   Errors: what a piece of work threw.
  void wait();

 private:
  void serve();
  void rethrow();
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> queue_;
  std::exception_ptr error_;
  bool working_ = false, ending_ = false;
  std::thread thread_;
};

// Writes text to a file descriptor from a thread of its own: nobody waits for a terminal, pipe or launcher that takes
// nothing. What does not fit the room is left out, and a line in its place says how many lines those were. A reader
// that has gone (EPIPE) ends the output without an error.
class TextPump {
 public:
  static constexpr size_t kRoomBytes = size_t{4} << 20;
  explicit TextPump(int fd, size_t room_bytes = kRoomBytes);
  ~TextPump();  // as finish(1 s)
  TextPump(const TextPump&) = delete;
  TextPump& operator=(const TextPump&) = delete;

  void write(std::string text);
  // Waits at most so long for what is not yet written.   Returns what was lost, empty if nothing: "12 lines were not
  // taken".
  std::string finish(std::chrono::milliseconds patience);

 private:
  struct State;  // shared with the thread, which may hang in the system for ever
  std::shared_ptr<State> state_;
};

}  // namespace braid
