#include "trainer/metrics/progress_bar.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <vector>

#include "tests/trainer/metrics/terminal.h"

namespace braid {
namespace {

// What body(a terminal of 80 columns) writes there.
template <class Body>
std::string on_terminal(Body body) {
  setenv("TERM", "xterm", 1);
  unsetenv("NO_COLOR");
  return testing::text_on_terminal(80, body);
}

void wait_for_a_redraw() { std::this_thread::sleep_for(std::chrono::milliseconds(300)); }

TEST(ProgressBar, BarLineFitsTheColumns) {
  EXPECT_EQ(bar_line(0.25, "a", 30), "[#####---------------]  25%  a");
  EXPECT_EQ(bar_line(0.25, "a", 12), " 25%  a");
  EXPECT_EQ(bar_line(1, "long text", 8), "100%  lo");
  EXPECT_EQ(bar_line(1, "a", 0), "");
}

TEST(ProgressBar, OnATerminalIsDrawnAndGone) {
  const std::string text = on_terminal([](std::FILE* out) {
    ProgressBar bar("text: ", true, out);
    bar.show(20, 100, "20 rows");
    wait_for_a_redraw();
    bar.show(40, 100, "40 rows");
  });
  EXPECT_NE(text.find("]  40%  text: 40 rows  0:0"), text.npos) << text;
  EXPECT_EQ(text.find("20 rows"), text.npos) << "too early: " << text;
  EXPECT_TRUE(text.ends_with("\r\033[K")) << text;
}

TEST(ProgressBar, AFileGetsNothingOfAShortCommand) {
  std::FILE* file = std::tmpfile();
  {
    ProgressBar bar("", true, file);
    bar.show(1, 2, "one");
    wait_for_a_redraw();
    bar.show(2, 2, "two");
  }
  EXPECT_EQ(std::ftell(file), 0);
  std::fclose(file);
}

TEST(ProgressBar, ThatIsNotShownSaysNothing) {
  EXPECT_EQ(on_terminal([](std::FILE* out) {
              ProgressBar bar("", false, out);
              bar.show(1, 2, "one");
              wait_for_a_redraw();
              bar.show(2, 2, "two");
            }),
            "");
}

TEST(ReadingBar, TellsWhatThisProcessReads) {
  const std::string text = on_terminal([](std::FILE* out) {
    const int before = dup(STDERR_FILENO);
    dup2(fileno(out), STDERR_FILENO);
    {
      const ReadingBar bar("read: ", 400'000'000);
      wait_for_a_redraw();  // what was read before does not count
      std::vector<char> bytes(100'000'000);
      std::ifstream("/dev/zero").read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
      wait_for_a_redraw();
    }
    dup2(before, STDERR_FILENO);
    close(before);
  });
  EXPECT_NE(text.find(" 25%  read: 0.1 of 0.4 GB"), text.npos) << text;
}

}  // namespace
}  // namespace braid
