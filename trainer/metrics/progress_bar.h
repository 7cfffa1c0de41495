#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <mutex>
#include <string>
#include <thread>

namespace braid {

// A terminal that knows its width, with neither NO_COLOR nor TERM=dumb. mpirun gives its ranks a pseudo-terminal even
// if its own output goes to a file; only in front of a real terminal does that one have a width.
bool is_terminal(std::FILE* file);
int terminal_columns(std::FILE* file);  // 0 if it is none

// "[####------]  40%  text", cut to the columns of the terminal; without the bar where there is no room for one.
std::string bar_line(double share, const std::string& text, int columns);

// How far a long command is, on stderr: on a terminal one line that is redrawn and gone in the end, elsewhere nothing
// but a line every ten seconds. Not for several threads.
class ProgressBar {
 public:
  // `what` goes before the rest: "held out: ". Not shown: says nothing.
  explicit ProgressBar(std::string what, bool is_shown = true, std::FILE* out = stderr);
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;
  // all = 0: not known. `detail` stands in front of the time left.
  void show(int64_t done, int64_t all, const std::string& detail);
  double seconds() const;  // since the first show

 private:
  using Clock = std::chrono::steady_clock;
  std::string what_;
  std::FILE* out_;
  bool is_shown_, is_terminal_, is_drawn_ = false;
  int64_t first_done_ = -1;  // what was there before is no speed
  Clock::time_point begin_ = Clock::now(), shown_at_ = begin_;
};

// The same for a command that reads so many bytes of files, told by what the system says that the process has read
// (/proc/self/io). On a terminal only.
class ReadingBar {
 public:
  ReadingBar(std::string what, int64_t all_bytes);
  ~ReadingBar();

 private:
  std::mutex mutex_;
  std::condition_variable leave_;
  bool is_over_ = false;
  std::thread thread_;  // last: it uses the others
};

}  // namespace braid
