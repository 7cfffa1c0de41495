#include "trainer/checkpoint/safetensors.h"

#include <filesystem>
#include <fstream>

#include "tests/testing.h"

namespace braid {
namespace {

class SafetensorsTest : public ::testing::Test {
 protected:
  std::string path_ = ::testing::TempDir() + "braid_test.safetensors";
  void TearDown() override { std::filesystem::remove(path_); }

  void write(const std::string& bytes) { std::ofstream(path_, std::ios::binary) << bytes; }
  // A file with this JSON header and so many bytes of data.
  void write(const std::string& json, size_t data_bytes) {
    const uint64_t length = json.size();
    write(std::string(reinterpret_cast<const char*>(&length), 8) + json + std::string(data_bytes, 'x'));
  }
  void expect_refused(const std::string& rule) {
    try {
      read_safetensors_header(path_);
      FAIL() << "accepted, although: " << rule;
    } catch (const CheckpointError& e) {
      EXPECT_NE(std::string(e.what()).find(path_), std::string::npos) << "names the file: " << e.what();
      EXPECT_NE(std::string(e.what()).find(rule), std::string::npos) << e.what();
    }
  }
};

TEST_F(SafetensorsTest, ReadsWhatItWrites) {
  const std::string header = make_safetensors_header(
      {{"b", DType::kF32, {2, 3}}, {"a", DType::kI64, {}}, {"empty", DType::kF64, {0, 5}}}, {{"made", "by a test"}});
  EXPECT_EQ(header.size() % 8, 0u);
  write(header + std::string(32, 'x'));
  const SafetensorsHeader read = read_safetensors_header(path_);
  EXPECT_EQ(read.data_offset, static_cast<int64_t>(header.size()));
  EXPECT_EQ(read.metadata.at("made"), "by a test");
  EXPECT_EQ(read.entries.at("b").end, 24);
  EXPECT_EQ(read.entries.at("a").begin, 24);
  EXPECT_EQ(read.entries.at("a").shape.size(), 0u);
  EXPECT_EQ(read.entries.at("empty").begin, 32);
  EXPECT_EQ(read.entries.size(), 3u);
}

TEST_F(SafetensorsTest, RefusesBrokenLengths) {
  std::filesystem::remove(path_);
  expect_refused("cannot be opened");
  write("");
  expect_refused("too short");
  write("1234567");
  expect_refused("too short");
  for (uint64_t length : {uint64_t{0}, uint64_t{1}, uint64_t{3}, uint64_t{1} << 31, uint64_t{1} << 63, ~uint64_t{0}}) {
    write(std::string(reinterpret_cast<const char*>(&length), 8) + "{}");
    expect_refused("declares a safetensors header");
  }
}

TEST_F(SafetensorsTest, RefusesBrokenHeaders) {
  struct Case {
    const char *json, *rule;
  };
  const Case cases[] = {
      {"[]", "does not start with {"},
      {" {}", "does not start with {"},
      {"{]", "not valid JSON"},
      {"{\"a\": tru}", "not valid JSON"},
      {"{\"a\xff\": 1}", "not valid JSON"},
      {"{} {}", "not valid JSON"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
       "the name a twice"},
      {R"({"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}})", "the name dtype twice"},
      {R"({"a":{"dtype":"F32","shape":[[1]],"data_offsets":[0,4]}})", "nests deeper"},
      {R"({"a":[]})", "is not an object"},
      {R"({"a":3})", "is not an object"},
      {R"({"a":{}})", "exactly dtype, shape and data_offsets"},
      {R"({"a":{"dtype":"F32","shape":[1]}})", "exactly dtype, shape and data_offsets"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"more":1}})", "exactly dtype, shape and data_offsets"},
      {R"({"a":{"dtype":"F32","shape":[1],"offsets":[0,4]}})", "exactly dtype, shape and data_offsets"},
      {R"({"a":{"dtype":32,"shape":[1],"data_offsets":[0,4]}})", "dtype is not a string"},
      {R"({"a":{"dtype":"f32","shape":[1],"data_offsets":[0,4]}})", "unsupported dtype f32"},
      {R"({"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}})", "unsupported dtype F16"},
      {R"({"a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}})", "unsupported dtype F8_E4M3"},
      {R"({"a":{"dtype":"F32","shape":1,"data_offsets":[0,4]}})", "shape is not a list"},
      {R"({"a":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]}})", "at most 8"},
      {R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", "not a non-negative integer"},
      {R"({"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}})", "not a non-negative integer"},
      {R"({"a":{"dtype":"F32","shape":["1"],"data_offsets":[0,4]}})", "not a non-negative integer"},
      {R"({"a":{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,4]}})", "not a non-negative integer"},
      {R"({"a":{"dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,4]}})", "not a non-negative integer"},
      {R"({"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,4]}})", "overflows"},
      {R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}})", "overflows"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}})", "not a pair"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}})", "not a pair"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":{"0":4}}})", "not a pair"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}})", "not a non-negative integer"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0.5,4]}})", "not a non-negative integer"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", "lie outside"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", "lie outside"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", "need 8 bytes"},
      {R"({"a":{"dtype":"F64","shape":[1],"data_offsets":[0,4]}})", "need 8 bytes"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[3],"data_offsets":[1,4]}})",
       "overlap or hole"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})",
       "overlap or hole"},
      {R"({"a":{"dtype":"U8","shape":[3],"data_offsets":[1,4]}})", "overlap or hole"},
      {R"({"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}})", "of 4 bytes of data"},
      {R"({})", "of 4 bytes of data"},
      {R"({"__metadata__":[],"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", "__metadata__ is not an object"},
      {R"({"__metadata__":{"n":1},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", "__metadata__ n is not"},
  };
  for (const Case& c : cases) {
    write(c.json, 4);
    expect_refused(c.rule);
  }
  write("{\"a\":" + std::string(100000, '[') + std::string(100000, ']') + "}", 4);
  expect_refused("nests deeper");
}

}  // namespace
}  // namespace braid
