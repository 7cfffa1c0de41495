#include "trainer/metrics/background.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <future>
#include <thread>
#include <utility>

#include "kernels/core/error.h"

namespace braid {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

TEST(Background, DoesItsWorkInOrderAndWaitsForItAtTheEnd) {
  std::vector<int> done;
  {
    Background background;
    for (int i = 0; i < 1000; ++i) background.post([&, i] { done.push_back(i); });
    background.wait();
    EXPECT_EQ(done.size(), 1000u);
    background.post([&] { done.push_back(1000); });
  }
  for (int i = 0; i <= 1000; ++i) EXPECT_EQ(done.at(i), i);
}

TEST(Background, AnErrorReachesTheNextCallOnce) {
  Background background;
  background.post([] { throw IoError("disk full"); });
  EXPECT_THROW(background.wait(), IoError);
  background.wait();
}

TEST(Background, NobodyWaitsForWorkThatHangsAndTheQueueHasAnEnd) {
  std::promise<void> release;
  std::future<void> released = release.get_future();
  Background background;
  const auto start = Clock::now();
  background.post([&] { released.wait(); });
  EXPECT_THROW(for (size_t i = 0; i < Background::kMost + 2; ++i) background.post([] {}), IoError);
  EXPECT_LT(Clock::now() - start, std::chrono::seconds(20));
  release.set_value();
  background.wait();
}

struct Pipe {
  Pipe() { EXPECT_EQ(pipe(ends), 0); }
  ~Pipe() {
    for (int end : ends)
      if (end >= 0) close(end);
  }
  std::string read_all() {
    close(ends[1]);
    ends[1] = -1;
    std::string text;
    char piece[4096];
    for (ssize_t n; (n = ::read(ends[0], piece, sizeof piece)) > 0;) text.append(piece, static_cast<size_t>(n));
    return text;
  }
  int ends[2];
};

TEST(TextPump, WritesAll) {
  Pipe pipe;
  {
    TextPump pump(pipe.ends[1]);
    for (int i = 0; i < 100; ++i) pump.write(std::to_string(i) + "\n");
    EXPECT_EQ(pump.finish(milliseconds(20000)), "");
  }
  std::string expected;
  for (int i = 0; i < 100; ++i) expected += std::to_string(i) + "\n";
  EXPECT_EQ(pipe.read_all(), expected);
}

TEST(TextPump, AReaderThatReadsNothingHoldsUpNobodyAndLearnsWhatItMissed) {
  Pipe pipe;
  const std::string line(999, 'x');
  std::string text;
  std::thread reader;
  {
    TextPump pump(pipe.ends[1], 100000);
    const auto start = Clock::now();
    for (int i = 0; i < 1000; ++i) pump.write(line + "\n");  // a pipe takes 64 KiB
    EXPECT_LT(Clock::now() - start, std::chrono::seconds(5));
    EXPECT_NE(pump.finish(milliseconds(50)), "");
    reader = std::thread([&] {
      char piece[65536];
      for (ssize_t n; (n = ::read(pipe.ends[0], piece, sizeof piece)) > 0;) text.append(piece, static_cast<size_t>(n));
    });
    // What was left out is told behind the next text that is taken, which may be one of the thousand.
    while (pump.finish(milliseconds(20)) != "") {}
    pump.write("last\n");
    while (pump.finish(milliseconds(20)) != "") {}
  }
  close(std::exchange(pipe.ends[1], -1));
  reader.join();
  const auto lines = std::count(text.begin(), text.end(), 'x') / 999;
  EXPECT_GE(lines, 60);
  int64_t left_out = 0;
  for (size_t at = 0; (at = text.find('(', at)) != text.npos; ++at) left_out += std::stoll(text.substr(at + 1));
  EXPECT_EQ(left_out, 1000 - lines);
  EXPECT_NE(text.find("lines were left out here"), text.npos);
}

TEST(TextPump, AReaderThatHasGoneIsNoError) {
  const auto old_handler = std::signal(SIGPIPE, SIG_IGN);
  Pipe pipe;
  close(pipe.ends[0]);
  pipe.ends[0] = -1;
  TextPump pump(pipe.ends[1]);
  for (int i = 0; i < 100; ++i) pump.write("line\n");
  EXPECT_EQ(pump.finish(milliseconds(20000)), "");
  std::signal(SIGPIPE, old_handler);
}

TEST(TextPump, AFullDiskIsSaid) {
  const int full = open("/dev/full", O_WRONLY);
  ASSERT_GE(full, 0);
  {
    TextPump pump(full);
    pump.write("one\ntwo\n");
    EXPECT_EQ(pump.finish(milliseconds(20000)), "2 lines could not be written: No space left on device");
  }
  close(full);
}

}  // namespace
}  // namespace braid
