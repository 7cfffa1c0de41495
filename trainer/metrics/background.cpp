#include "trainer/metrics/background.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "kernels/core/error.h"

namespace braid {

Background::Background() : thread_([this] { serve(); }) {}

Background::~Background() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Background::rethrow() {
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void Background::post(std::function<void()> work) {
  const std::lock_guard lock(mutex_);
  rethrow();
  check<IoError>(queue_.size() < kMost, "the run folder takes no more: ", queue_.size(),
                 " lines of metrics wait to be written");
  queue_.push_back(std::move(work));
  changed_.notify_all();
}

void Background::wait() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return queue_.empty() && !working_; });
  rethrow();
}

void Background::serve() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return !queue_.empty() || ending_; });
    if (queue_.empty()) return;
    const std::function<void()> work = std::move(queue_.front());
    queue_.pop_front();
    working_ = true;
    lock.unlock();
    std::exception_ptr error;
    try {
      work();
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    working_ = false;
    if (error && !error_) error_ = error;
    changed_.notify_all();
  }
}

struct TextPump::State {
  int fd;
  size_t room;
  std::mutex mutex;
  std::condition_variable changed;
  std::string waiting;
  size_t lines_left_out = 0;  // since the last that was taken
  size_t lines_lost = 0;      // of them, those that nobody was told of
  int error = 0;
  bool writing = false, ending = false, reader_gone = false;

  // All of it; false after an error.
  bool put(const std::string& text) {
    for (size_t done = 0; done < text.size();) {
      const ssize_t n = ::write(fd, text.data() + done, text.size() - done);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) {
        error = errno;
        return false;
      }
      done += static_cast<size_t>(n);
    }
    return true;
  }

  void serve() {
    std::unique_lock lock(mutex);
    for (;;) {
      changed.wait(lock, [this] { return !waiting.empty() || ending; });
      if (waiting.empty()) return;
      std::string text = std::exchange(waiting, {});
      if (lines_left_out > 0)
        text += concat("(", lines_left_out, " lines were left out here: nobody read them in time)\n");
      lines_left_out = 0;
      writing = true;
      lock.unlock();
      const bool taken = put(text);
      lock.lock();
      writing = false;
      if (!taken && error == EPIPE) {
        error = 0;
        reader_gone = true;
      } else if (!taken) {
        lines_lost += static_cast<size_t>(std::count(text.begin(), text.end(), '\n'));
      }
      changed.notify_all();
    }
  }
};

TextPump::TextPump(int fd, size_t room_bytes) : state_(std::make_shared<State>()) {
  state_->fd = fd;
  state_->room = room_bytes;
  std::thread([state = state_] { state->serve(); }).detach();
}

TextPump::~TextPump() {
  finish(std::chrono::seconds(1));
  const std::lock_guard lock(state_->mutex);
  state_->ending = true;
  state_->changed.notify_all();
}

void TextPump::write(std::string text) {
  const std::lock_guard lock(state_->mutex);
  if (state_->reader_gone) return;
  if (state_->waiting.size() + text.size() > state_->room) {
    state_->lines_left_out += static_cast<size_t>(std::count(text.begin(), text.end(), '\n'));
    return;
  }
  state_->waiting += text;
  state_->changed.notify_all();
}

std::string TextPump::finish(std::chrono::milliseconds patience) {
  State& s = *state_;
  std::unique_lock lock(s.mutex);
  const bool done = s.changed.wait_for(lock, patience, [&] { return s.waiting.empty() && !s.writing; });
  if (s.error != 0) return concat(s.lines_lost, " lines could not be written: ", reason(s.error));
  if (done) return "";
  const auto lines = s.lines_left_out + static_cast<size_t>(std::count(s.waiting.begin(), s.waiting.end(), '\n'));
  return concat(lines, " lines or more were not taken by who reads them");
}

}  // namespace braid
