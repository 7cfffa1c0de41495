#pragma once

#include <cstdint>
#include <cstdio>
#include <functional>
#include <mutex>
#include <string>

namespace braid {

// What the console says about a step; the files get more.
struct ConsoleStep {
  int64_t step = 0, run_steps = 0, tokens = 0;
  double loss_lm = 0, loss_mtp = 0, loss_balance = 0, grad_norm = 0, lr = 0, tokens_per_s = 0;
  bool mtp = false;
};

// kQuiet says nothing but warnings. kJson writes an object per line: the metrics of a step or an evaluation as in
// metrics.jsonl, {"message": …} for anything else.
enum class ConsoleStyle { kText, kQuiet, kJson };

// One line per step with fixed columns, and on a terminal a progress line below it that is redrawn: bar, percentage,
// time left. Not a terminal (or one that does not know its width), NO_COLOR or TERM=dumb: plain lines only, with the
// time left at their end. Rank 0 only; any thread. SIGPIPE must be ignored by the caller.
class Console {
 public:
  // Text goes to `write` where that is given; `out` then only says what it is written to.
  using Write = std::function<void(std::string text)>;
  explicit Console(std::FILE* out, ConsoleStyle style = ConsoleStyle::kText, Write write = {});
  ~Console();                             // clears the progress line
  void line(const std::string& text);     // above the progress line
  void warning(const std::string& text);  // in every style
  void step(const ConsoleStep& step, bool print_line);
  void metrics(const std::string& json);  // for kJson alone

  static std::string format_step(const ConsoleStep& step);
  static std::string format_duration(double seconds);  // "1:02:03", "2:03"; "-:--" if not known

 private:
  void put(const std::string& text);
  std::string cleared_progress();
  void put_line(const std::string& text);
  double seconds_left(const ConsoleStep& step) const;
  std::FILE* out_;
  ConsoleStyle style_;
  Write write_;
  std::mutex mutex_;
  bool terminal_ = false, progress_shown_ = false;
  double first_step_s_ = 0, drawn_s_ = 0;
  int64_t first_step_ = -1;
};

}  // namespace braid
