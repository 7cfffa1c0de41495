#include "trainer/metrics/progress_bar.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <sstream>
#include <string_view>
#include <utility>

#include "kernels/core/file_text.h"
#include "kernels/core/stream.h"
#include "trainer/metrics/console.h"

namespace braid {
namespace {

// Of files and whatever else this process has read so far; 0 where the system does not tell.
int64_t bytes_read() {
  Loud<std::istringstream> io(file_text("/proc/self/io"));
  std::string name;
  int64_t bytes = 0;
  return io >> name >> bytes && name == "rchar:" ? bytes : 0;
}

}  // namespace

int terminal_columns(std::FILE* file) {
  winsize size = {};
  return ioctl(fileno(file), TIOCGWINSZ, &size) == 0 ? size.ws_col : 0;
}

bool is_terminal(std::FILE* file) {
  const char* term = std::getenv("TERM");
  const char* no_color = std::getenv("NO_COLOR");
  return isatty(fileno(file)) == 1 && terminal_columns(file) > 0 && term && std::string_view(term) != "dumb" &&
         (!no_color || !*no_color);
}

std::string bar_line(double share, const std::string& text, int columns) {
  std::string line = fmt::format("{:3.0f}%  {}", share * 100, text);
  const int bar = std::min(40, columns - static_cast<int>(line.size()) - 3);
  if (bar >= 10) {
    const auto done = std::clamp<size_t>(size_t(share * bar), 0, bar);
    line = fmt::format("[{}{}] {}", std::string(done, '#'), std::string(bar - done, '-'), line);
  }
  return line.substr(0, std::max(0, columns));
}

ProgressBar::ProgressBar(std::string what, bool is_shown, std::FILE* out)
    : what_(std::move(what)), out_(out), is_shown_(is_shown), is_terminal_(is_shown && is_terminal(out)) {}

ProgressBar::~ProgressBar() {
  if (is_drawn_) std::fputs("\r\033[K", out_);
}

double ProgressBar::seconds() const { return std::chrono::duration<double>(Clock::now() - begin_).count(); }

void ProgressBar::show(int64_t done, int64_t all, const std::string& detail) {
  const auto now = Clock::now();
  if (first_done_ < 0) first_done_ = done, begin_ = now;
  if (!is_shown_ ||
      now - shown_at_ < (is_terminal_ ? std::chrono::milliseconds(250) : std::chrono::milliseconds(10000)))
    return;
  shown_at_ = now;
  const double rate = double(done - first_done_) / seconds();
  const bool known = all > 0 && rate > 0;
  const std::string left = known ? "  " + Console::format_duration(double(all - done) / rate) + " left" : "";
  const double share = all > 0 ? std::min(1.0, double(done) / double(all)) : 0;
  if (is_terminal_) {
    const int columns = terminal_columns(out_) - 1;  // the last one would wrap on some terminals
    const std::string text = what_ + detail + left;
    std::fprintf(out_, "\r\033[K%s",
                 all > 0 ? bar_line(share, text, columns).c_str() : text.substr(0, columns).c_str());
    is_drawn_ = true;
  } else {
    std::fprintf(out_, "%s%s%s%s\n", what_.c_str(), all > 0 ? fmt::format("{:.0f}%  ", share * 100).c_str() : "",
                 detail.c_str(), left.c_str());
  }
  std::fflush(out_);
}

ReadingBar::ReadingBar(std::string what, int64_t all_bytes) {
  if (!is_terminal(stderr)) return;
  thread_ = std::thread([this, what = std::move(what), all_bytes] {
    ProgressBar bar(what);
    const int64_t before = bytes_read();
    std::unique_lock lock(mutex_);
    while (!leave_.wait_for(lock, std::chrono::milliseconds(250), [this] { return is_over_; })) {
      const int64_t done = std::min(bytes_read() - before, all_bytes);
      bar.show(done, all_bytes, fmt::format("{:.1f} of {:.1f} GB", double(done) / 1e9, double(all_bytes) / 1e9));
    }
  });
}

ReadingBar::~ReadingBar() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    is_over_ = true;
  }
  leave_.notify_one();
  thread_.join();
}

}  // namespace braid
