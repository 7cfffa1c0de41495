#include "trainer/metrics/console.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <optional>
#include <thread>

#include "tests/trainer/metrics/terminal.h"

namespace braid {
namespace {

ConsoleStep some_step(int64_t step) {
  ConsoleStep s;
  s.step = step;
  s.run_steps = 300;
  s.tokens = step * 4096;
  s.loss_lm = 5.55123;
  s.loss_mtp = 5.7;
  s.loss_balance = 4.03;
  s.grad_norm = 2.5;
  s.lr = 2e-3;
  s.tokens_per_s = 12345.6;
  s.mtp = true;
  return s;
}

// Sets an environment variable for the time of a test.
class Environment {
 public:
  Environment(const char* name, const char* value) : name_(name) {
    if (const char* old = std::getenv(name)) old_ = old;
    if (value) setenv(name, value, 1);
    else unsetenv(name);
  }
  ~Environment() {
    if (old_) setenv(name_, old_->c_str(), 1);
    else unsetenv(name_);
  }

 private:
  const char* name_;
  std::optional<std::string> old_;
};

// What a Console writes to a terminal of `columns`; 0 is one that does not know its width.
template <class Body>
std::string output_on_terminal(unsigned short columns, Body body) {
  return testing::text_on_terminal(columns, [&](std::FILE* out) {
    Console console(out);
    body(console);
  });
}

template <class Body>
std::string output_in_file(Body body) {
  char* text = nullptr;
  size_t size = 0;
  std::FILE* out = open_memstream(&text, &size);
  {
    Console console(out);
    body(console);
  }
  std::fclose(out);
  std::string result(text, size);
  std::free(text);
  return result;
}

TEST(Console, FormatsAStep) {
  EXPECT_EQ(Console::format_step(some_step(7)),
            "step   7/300  tokens 28.67k  lm   5.5512  mtp   5.7000  balance   4.0300  grad norm   2.5000  "
            "lr 2.000e-03  tokens/s 12.35k");
  ConsoleStep s = some_step(7);
  s.mtp = false;
  EXPECT_EQ(Console::format_step(s),
            "step   7/300  tokens 28.67k  lm   5.5512  balance   4.0300  grad norm   2.5000  lr 2.000e-03  "
            "tokens/s 12.35k");
}

TEST(Console, ColumnsStayWhereTheyAre) {
  const size_t length = Console::format_step(some_step(1)).size();
  ConsoleStep s = some_step(300);
  for (double value : {0.0, 1e-9, 99.99999, 999.99999, 1000.0, 1e30, double(NAN), double(INFINITY)}) {
    s.loss_lm = s.loss_mtp = s.loss_balance = s.grad_norm = value;
    EXPECT_EQ(Console::format_step(s).size(), length) << value;
  }
  for (double value :
       {0.0, 0.3, 999.4, 999.5, 999.6, 1000.0, 9999.94, 99999.96, 999949.0, 999951.0, 1e9, 15e12, 1e17}) {
    s.tokens_per_s = value;
    s.tokens = static_cast<int64_t>(value);
    EXPECT_EQ(Console::format_step(s).size(), length) << value << ": " << Console::format_step(s);
  }
}

TEST(Console, FormatsDurations) {
  EXPECT_EQ(Console::format_duration(0), "0:00");
  EXPECT_EQ(Console::format_duration(59.6), "1:00");
  EXPECT_EQ(Console::format_duration(123), "2:03");
  EXPECT_EQ(Console::format_duration(3723), "1:02:03");
  EXPECT_EQ(Console::format_duration(100 * 3600), "100:00:00");
  for (double unknown : {-1.0, double(NAN), double(INFINITY)}) EXPECT_EQ(Console::format_duration(unknown), "-:--");
}

TEST(Console, AFileGetsPlainLines) {
  const std::string text = output_in_file([](Console& console) {
    console.line("hello");
    console.line("already ended\n");
    console.line("");
    console.step(some_step(1), true);
    console.step(some_step(2), false);
    console.step(some_step(3), true);
  });
  EXPECT_EQ(text.find_first_of("\r\033"), text.npos);
  const std::string first = "hello\nalready ended\n\n" + Console::format_step(some_step(1)) + "  left -:--\n" +
                            Console::format_step(some_step(3)) + "  left 0:00\n";
  EXPECT_EQ(text, first);
}

TEST(Console, TheTimeLeftGrowsWithTheStepsToGo) {
  const std::string text = output_in_file([](Console& console) {
    ConsoleStep s = some_step(1);
    s.run_steps = 1000000;
    console.step(s, false);
    std::this_thread::sleep_for(std::chrono::milliseconds(40));
    s.step = 3;
    console.step(s, true);
  });
  // 20 ms a step, or more on a busy machine
  EXPECT_GE(std::stoi(text.substr(text.find("left ") + 5)), 5) << text;
  EXPECT_EQ(std::count(text.begin(), text.end(), ':'), 2) << text;
}

TEST(Console, ATerminalHasAProgressLineBelow) {
  Environment term("TERM", "xterm"), color("NO_COLOR", nullptr);
  const std::string text = output_on_terminal(80, [](Console& console) {
    console.step(some_step(150), true);
    console.line("between");
  });
  const std::string progress =
      "[" + std::string(18, '#') + std::string(18, '-') + "]  50%  step 150/300  lm 5.5512  -:-- left";
  EXPECT_EQ(text, Console::format_step(some_step(150)) + "\r\n" + progress + "\r\033[Kbetween\r\n");
  EXPECT_EQ(progress.size(), 79u);  // one less than the terminal has
}

TEST(Console, ANarrowTerminalIsNotWrapped) {
  Environment term("TERM", "xterm"), color("NO_COLOR", nullptr);
  EXPECT_EQ(output_on_terminal(21, [](Console& console) { console.step(some_step(150), false); }),
            " 50%  step 150/300  \r\033[K");
}

TEST(Console, NoProgressLineWhereItCannotBeRedrawn) {
  const auto body = [](Console& console) { console.step(some_step(150), true); };
  const std::string plain = Console::format_step(some_step(150)) + "  left -:--\r\n";
  {
    Environment term("TERM", "dumb"), color("NO_COLOR", nullptr);
    EXPECT_EQ(output_on_terminal(80, body), plain);
  }
  Environment term("TERM", "xterm");
  {
    Environment color("NO_COLOR", "1");
    EXPECT_EQ(output_on_terminal(80, body), plain);
  }
  Environment color("NO_COLOR", nullptr);
  EXPECT_EQ(output_on_terminal(0, body), plain);  // mpirun writing to a file
  EXPECT_NE(output_on_terminal(80, body), plain);
}

TEST(Console, AFullDiskIsNoReasonToStop) {
  std::FILE* out = std::fopen("/dev/full", "w");
  ASSERT_NE(out, nullptr);
  {
    Console console(out);
    for (int i = 1; i < 100; ++i) console.step(some_step(i), true);
  }
  std::fclose(out);
}

// What a console of some style writes into a file.
std::string written(ConsoleStyle style) {
  std::FILE* file = std::tmpfile();
  {
    Console console(file, style);
    console.line("a \"line\"\n");
    console.step(some_step(3), true);
    console.metrics("{\"step\": 3}");
    console.warning("disk full");
  }
  std::rewind(file);
  std::string text;
  for (int c; (c = std::fgetc(file)) != EOF;) text += static_cast<char>(c);
  std::fclose(file);
  return text;
}

TEST(ConsoleStyles, QuietSaysNothingButWarnings) { EXPECT_EQ(written(ConsoleStyle::kQuiet), "WARNING: disk full\n"); }

TEST(ConsoleStyles, JsonIsAnObjectPerLine) {
  EXPECT_EQ(written(ConsoleStyle::kJson),
            "{\"message\":\"a \\\"line\\\"\\n\"}\n{\"step\": 3}\n{\"message\":\"WARNING: disk full\"}\n");
}

TEST(ConsoleStyles, TextHasNoJson) {
  const std::string text = written(ConsoleStyle::kText);
  EXPECT_EQ(text.find('{'), std::string::npos);
  EXPECT_NE(text.find("WARNING: disk full"), std::string::npos);
  EXPECT_NE(text.find("step   3/300"), std::string::npos);
}

}  // namespace
}  // namespace braid
