#include "trainer/metrics/console.h"

#include <fmt/format.h>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "trainer/metrics/progress_bar.h"

namespace braid {
namespace {

double now_s() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

std::string message_line(const std::string& text) {
  const nlohmann::json message = {{"message", text}};
  return message.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

// Eight characters for every number that training meets.
std::string loss_column(double value) {
  return std::abs(value) < 999.9999 ? fmt::format("{:8.4f}", value) : fmt::format("{:>8.2e}", value);
}

// 999, 1.234k, 12.35M: at most six characters below 1e18.
std::string count_column(double value) {
  constexpr double kRoundsToNextUnit = 999.95;
  if (!(value >= kRoundsToNextUnit)) return fmt::format("{:>6.0f}", value);
  const char* unit = "kMGTP";
  for (value /= 1000; value >= kRoundsToNextUnit && unit[1]; ++unit) value /= 1000;
  return fmt::format("{:#5.4g}{}", value, *unit);
}

}  // namespace

Console::Console(std::FILE* out, ConsoleStyle style, Write write)
    : out_(out), style_(style), write_(std::move(write)), terminal_(style == ConsoleStyle::kText && is_terminal(out)) {}

Console::~Console() { put(cleared_progress()); }

void Console::put(const std::string& text) {
  if (write_) return write_(text);
  std::fputs(text.c_str(), out_);
  std::fflush(out_);
}

std::string Console::cleared_progress() {
  const bool shown = progress_shown_;
  progress_shown_ = false;
  return shown ? "\r\033[K" : "";
}

void Console::put_line(const std::string& text) {
  put(cleared_progress() + text + (text.empty() || text.back() != '\n' ? "\n" : ""));
}

void Console::line(const std::string& text) {
  const std::lock_guard lock(mutex_);
  switch (style_) {
    case ConsoleStyle::kText: return put_line(text);
    case ConsoleStyle::kQuiet: return;
    case ConsoleStyle::kJson: return put_line(message_line(text));
  }
}

void Console::warning(const std::string& text) {
  const std::lock_guard lock(mutex_);
  const std::string warning = "WARNING: " + text;
  put_line(style_ == ConsoleStyle::kJson ? message_line(warning) : warning);
}

void Console::metrics(const std::string& json) {
  const std::lock_guard lock(mutex_);
  if (style_ == ConsoleStyle::kJson) put_line(json);
}

double Console::seconds_left(const ConsoleStep& s) const {
  if (s.step == first_step_) return std::numeric_limits<double>::quiet_NaN();
  return (now_s() - first_step_s_) / double(s.step - first_step_) * double(s.run_steps - s.step);
}

void Console::step(const ConsoleStep& s, bool print_line) {
  if (style_ != ConsoleStyle::kText) return;
  const std::lock_guard lock(mutex_);
  if (first_step_ < 0) {
    first_step_ = s.step;
    first_step_s_ = now_s();
  }
  const std::string left = format_duration(seconds_left(s));
  if (print_line) put_line(format_step(s) + (terminal_ ? "" : "  left " + left));
  constexpr double kRedrawSeconds = 0.1;
  if (!terminal_ || (progress_shown_ && s.step < s.run_steps && now_s() - drawn_s_ < kRedrawSeconds)) return;

  const double share = double(s.step) / double(s.run_steps);
  const std::string text = fmt::format("step {}/{}  lm {:.4f}  {} left", s.step, s.run_steps, s.loss_lm, left);
  // The last column would wrap on some terminals.
  put(cleared_progress() + bar_line(share, text, terminal_columns(out_) - 1));
  progress_shown_ = true;
  drawn_s_ = now_s();
}

std::string Console::format_step(const ConsoleStep& s) {
  const size_t digits = std::to_string(s.run_steps).size();
  return fmt::format("step {:{}}/{}  tokens {}  lm {}{}  balance {}  grad norm {}  lr {:.3e}  tokens/s {}", s.step,
                     digits, s.run_steps, count_column(double(s.tokens)), loss_column(s.loss_lm),
                     s.mtp ? "  mtp " + loss_column(s.loss_mtp) : "", loss_column(s.loss_balance),
                     loss_column(s.grad_norm), s.lr, count_column(s.tokens_per_s));
}

std::string Console::format_duration(double seconds) {
  if (!(seconds >= 0 && seconds < 1e12)) return "-:--";
  const int64_t total = std::llround(seconds);
  if (total >= 3600) return fmt::format("{}:{:02}:{:02}", total / 3600, total / 60 % 60, total % 60);
  return fmt::format("{}:{:02}", total / 60, total % 60);
}

}  // namespace braid
