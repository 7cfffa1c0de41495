#include "trainer/checkpoint/json_text.h"

#include "kernels/core/error.h"
#include "tests/trainer/checkpoint/checkpoint_testing.h"

namespace braid {
namespace {

using namespace braid::testing;

class JsonTextTest : public FolderTest {
 protected:
  std::string read(const std::string& text) {
    write_bytes(path("f"), "xx" + text + "xx");
    return read_json_text(StoredFile(path("f"), Links::kRefuse), 2, static_cast<int64_t>(text.size()));
  }
  std::string refusal(const std::string& text) {
    return message_of<CheckpointError>([&] { read(text); });
  }
};

TEST_F(JsonTextTest, ReadsAPartOfAFile) {
  for (const char* text : {"", "{}", R"({"a\"b" : [1, 2.5e3, "\\"]})"}) EXPECT_EQ(read(text), text);
}

TEST_F(JsonTextTest, RefusesZeroBytes) {
  EXPECT_EQ(refusal(std::string("{}\0", 3)), path("f") + ": holds a zero byte in its JSON text");
}

TEST_F(JsonTextTest, LimitsWhatTheParserCopies) {
  constexpr size_t kMost = 1 << 20;
  const std::string digits(kMost - 2, '1'), letters(kMost - 4, 'a');
  std::string escapes;
  while (escapes.size() < kMost - 4) escapes += "\\\"";
  for (const std::string& token : {digits, "-." + digits.substr(2), "\"" + letters + "\"", "\"" + escapes + "\""}) {
    const std::string many = "[" + token + "," + token + " " + token + ":" + token + "]";
    EXPECT_EQ(read(many), many);
    EXPECT_EQ(refusal("[" + token + "   "),
              path("f") + ": no string or number begins in the 1048576 bytes behind byte 3");
  }
  for (const char* part : {"[", " ", "{", "tru", "\xff", "a1"}) {
    std::string text = "[1,";
    while (text.size() <= kMost + 1) text += part;
    const bool has_digits = text.ends_with("a1");
    EXPECT_EQ(refusal(text),
              has_digits ? "" : path("f") + ": no string or number begins in the 1048576 bytes behind byte 3");
  }
  const std::string too_long[] = {digits + "111", "\"" + letters + "aaa\"", "\"" + letters + "\\\"\\\"",
                                  "\"" + escapes + "aaa\""};
  for (const std::string& token : too_long) expect_contains(refusal("[" + token), "no string or number begins");
}

}  // namespace
}  // namespace braid
