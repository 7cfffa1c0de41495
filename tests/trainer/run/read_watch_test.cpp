#include "trainer/run/read_watch.h"

#include <gtest/gtest.h>

#include <memory>

#include "parallel/progress.h"

namespace braid {
namespace {

constexpr int64_t kSecond = 1'000'000'000;

PendingRead since(int64_t begin_s, double seconds) {
  return {"/a/b.h5", "read 4096 bytes at byte 512", begin_s * kSecond, seconds};
}

TEST(SlowReads, TellOfOneReadLessAndLessOften) {
  SlowReads slow;
  std::string told;
  for (int s = 1; s <= 45; ++s)
    if (const std::string text = slow.look(since(100, s), (100 + s) * kSecond); !text.empty()) told += text + "\n";
  EXPECT_EQ(told,
            "/a/b.h5: no answer of its disk for 5 s: read 4096 bytes at byte 512\n"
            "/a/b.h5: no answer of its disk for 10 s: read 4096 bytes at byte 512\n"
            "/a/b.h5: no answer of its disk for 20 s: read 4096 bytes at byte 512\n"
            "/a/b.h5: no answer of its disk for 40 s: read 4096 bytes at byte 512\n");
  EXPECT_EQ(slow.look(since(145, 0.5), 145 * kSecond + kSecond / 2), "/a/b.h5: its disk answered again within 46 s")
      << "another read";
  EXPECT_EQ(slow.look(std::nullopt, 146 * kSecond), "") << "once";
  EXPECT_EQ(slow.look(since(150, 5.2), 155 * kSecond),
            "/a/b.h5: no answer of its disk for 5 s: read 4096 bytes at byte 512");
  EXPECT_EQ(slow.look(std::nullopt, 158 * kSecond), "/a/b.h5: its disk answered again within 8 s");
}

TEST(SlowReads, SayNothingOfReadsThatEnd) {
  SlowReads slow;
  for (int s = 1; s <= 60; ++s) EXPECT_EQ(slow.look(since(s, 4.9), s * kSecond), "");
}

TEST(ReadWatch, ShowsOthersWhatIsRead) {
  const std::string path(600, 'x');
  ReadWatch watch([](const std::string&) {});
  const auto shown = [](bool expected) {
    for (int i = 0; i < 400 && own_progress().slow_read.load().text.empty() == expected; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    return own_progress().slow_read.load();
  };
  auto read = std::make_unique<FileRead>("read", path, 4096, 512);
  const SharedText::Value value = shown(true);
  EXPECT_EQ(value.text.size(), 511u);
  EXPECT_TRUE(value.text.ends_with("xx, read 4096 bytes at byte 512")) << value.text;
  EXPECT_GE(now_ms() - value.since_ms, 1000);
  read.reset();
  EXPECT_EQ(shown(false).text, "");
}

}  // namespace
}  // namespace braid
