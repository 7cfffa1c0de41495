#include "kernels/core/file_read.h"

#include <sys/stat.h>

#include <memory>
#include <thread>

#include "kernels/core/error.h"
#include "kernels/core/raw_file.h"
#include "tests/file_testing.h"

namespace braid {
namespace {

using namespace braid::testing;

TEST(FileRead, TheOneThatTakesLongestIsNamed) {
  EXPECT_FALSE(longest_read());
  const std::string a = "/a", b = "/b", c = "/c";
  auto first = std::make_unique<FileRead>("open", a);
  auto second = std::make_unique<FileRead>("read", b, 4096, 512);
  const FileRead third("read", c, 1, 2);
  std::this_thread::sleep_for(std::chrono::milliseconds(2));
  EXPECT_EQ(longest_read()->path, "/a");
  EXPECT_EQ(longest_read()->what, "open");
  EXPECT_GE(longest_read()->seconds, 0.002);
  const int64_t began = longest_read()->begin_ns;
  first.reset();
  EXPECT_EQ(longest_read()->path, "/b");
  EXPECT_EQ(longest_read()->what, "read 4096 bytes at byte 512");
  EXPECT_GT(longest_read()->begin_ns, began);
  first = std::make_unique<FileRead>("open", a);  // the last now
  second.reset();
  EXPECT_EQ(longest_read()->path, "/c");
}

class RawFileTest : public FolderTest {};

TEST_F(RawFileTest, IsDoneWithAReadWhenItReturnsOrThrows) {
  write_bytes(path("f"), "0123456789");
  const RawFile file = RawFile::open(path("f"));
  char text[4];
  file.read(text, 4, 6);
  EXPECT_EQ(std::string(text, 4), "6789");
  expect_contains(message_of<DataError>([&] { file.read(text, 4, 8); }), "f: was cut after it had been opened");
  EXPECT_FALSE(longest_read());
}

TEST_F(RawFileTest, APipeIsRefusedWithoutWaitingForItsWriter) {
  ASSERT_EQ(mkfifo(path("pipe").c_str(), 0600), 0);
  expect_contains(message_of<DataError>([&] { RawFile::open(path("pipe")); }),
                  "pipe: expected a file, found something else");
}

}  // namespace
}  // namespace braid
