#include "trainer/checkpoint/safetensors.h"

#include <algorithm>
#include <random>

#include "tests/trainer/checkpoint/checkpoint_testing.h"

namespace braid {
namespace {

using namespace braid::testing;

std::string prefix(uint64_t length) { return {reinterpret_cast<const char*>(&length), sizeof length}; }

class SafetensorsTest : public FolderTest {
 protected:
  void write(const std::string& bytes) { write_bytes(path("f"), bytes); }
  // A file with this header and so many bytes of data.
  void write(const std::string& json, size_t data_bytes) {
    write(prefix(json.size()) + json + std::string(data_bytes, 'x'));
  }
  std::string refusal() {
    const std::string message = message_of<CheckpointError>([&] { read_safetensors_header(path("f")); });
    EXPECT_EQ(message.rfind(path("f") + ": ", 0), 0u) << "names the file: " << message;
    return message;
  }
};

TEST_F(SafetensorsTest, ReadsWhatItWrites) {
  const std::string odd_name = "model.\"x\"\\ü\n";
  const std::string header = make_safetensors_header({{"b", DType::kF32, {2, 3}},
                                                      {odd_name, DType::kI64, {}},
                                                      {"empty", DType::kF64, {0, 5}},
                                                      {"h", DType::kBF16, {1}}},
                                                     {{"made", "by a test"}});
  EXPECT_EQ(header.size() % 8, 0u);
  write(header + std::string(34, 'x'));
  const SafetensorsHeader read = read_safetensors_header(path("f"));
  EXPECT_EQ(read.data_offset, static_cast<int64_t>(header.size()));
  EXPECT_EQ(read.metadata, (std::map<std::string, std::string>{{"made", "by a test"}}));
  ASSERT_EQ(read.entries.size(), 4u);
  EXPECT_EQ(read.entries.at("b").dtype, DType::kF32);
  EXPECT_EQ(read.entries.at("b").shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(read.entries.at("b").begin, 0);
  EXPECT_EQ(read.entries.at("b").end, 24);
  EXPECT_EQ(read.entries.at(odd_name).begin, 24);
  EXPECT_EQ(read.entries.at(odd_name).shape.size(), 0u);
  EXPECT_EQ(read.entries.at("empty").begin, 32);
  EXPECT_EQ(read.entries.at("empty").end, 32);
  EXPECT_EQ(read.entries.at("h").end, 34);
}

TEST_F(SafetensorsTest, ReadsWhatOthersWrite) {
  // Entries in any order, fields in any order, white space, eight axes, no metadata; through a link, as caches have
  // them.
  write(
      R"({ "b" : {"data_offsets":[2,4],"shape":[1,1,1,1,1,1,1,2],"dtype":"U8"} ,"a":{"dtype":"BF16","shape":[],"data_offsets":[0,2]}})"
      "  \n\t\r ",
      4);
  std::filesystem::create_symlink(path("f"), path("link"));
  const SafetensorsHeader read = read_safetensors_header(path("link"));
  EXPECT_EQ(read.entries.at("a").end, 2);
  EXPECT_EQ(read.entries.at("b").shape.size(), 8u);
  write("{}", 0);
  EXPECT_TRUE(read_safetensors_header(path("f")).entries.empty());
  write(R"({"__metadata__":{}})", 0);
  EXPECT_TRUE(read_safetensors_header(path("f")).metadata.empty());
}

TEST_F(SafetensorsTest, RefusesNamesThatAreTaken) {
  EXPECT_EQ(message_of<CheckpointError>([] {
              make_safetensors_header({{"a", DType::kU8, {1}}, {"b", DType::kU8, {1}}, {"a", DType::kU8, {1}}}, {});
            }),
            "tensor \"a\" cannot be stored: the name is taken");
  EXPECT_THROW(make_safetensors_header({{"__metadata__", DType::kU8, {1}}}, {}), CheckpointError);
}

TEST_F(SafetensorsTest, RefusesBrokenLengths) {
  expect_contains(refusal(), "is missing");
  for (const char* bytes : {"", "1", "1234567"}) {
    write(bytes);
    expect_contains(refusal(), "too short for a safetensors file");
  }
  write(prefix(0));
  expect_contains(refusal(), "declares a safetensors header of 0 bytes");
  for (uint64_t length : {uint64_t{0}, uint64_t{1}, uint64_t{3}, uint64_t{100'000'001}, uint64_t{1} << 31,
                          uint64_t{1} << 63, ~uint64_t{0} - 7, ~uint64_t{0}}) {
    write(prefix(length) + "{}");
    expect_contains(refusal(), concat("declares a safetensors header of ", length, " bytes in a file of 10"));
  }
  // The limit counts although the file is long enough (it has a hole, so it takes no space).
  write(prefix(100'000'001));
  std::filesystem::resize_file(path("f"), 200'000'000);
  expect_contains(refusal(), "at most 100000000");
}

TEST_F(SafetensorsTest, RefusesBrokenHeaders) {
  struct Case {
    std::string json, rule;
  };
  const auto entry = [](const std::string& fields) { return "{\"a\":{" + fields + "}}"; };
  const std::string good = R"("dtype":"F32","shape":[1],"data_offsets":[0,4])";
  const auto with_shape = [&](const std::string& s) {
    return entry(R"("dtype":"F32","data_offsets":[0,4],"shape":)" + s);
  };
  const auto with_offsets = [&](const std::string& s) {
    return entry(R"("dtype":"F32","shape":[1],"data_offsets":)" + s);
  };
  const auto with_dtype = [&](const std::string& s) {
    return entry(R"("shape":[1],"data_offsets":[0,4],"dtype":)" + s);
  };
  const auto bytes_at = [](int begin, int end) {
    return concat(R"({"dtype":"U8","shape":[)", end - begin, R"(],"data_offsets":[)", begin, ",", end, "]}");
  };
  const std::string outside = "holds something else than non-negative integers";
  const Case cases[] = {
      // the text
      {"[]", "does not start with {"},
      {" {}", "does not start with {"},
      {"\xef\xbb\xbf{}", "does not start with {"},
      {"null", "does not start with {"},
      {"{]", "not valid JSON in UTF-8 at byte 10"},
      {"{ ", "not valid JSON"},
      {"{} {}", "not valid JSON"},
      {"{},", "not valid JSON"},
      {"{/**/}", "not valid JSON"},
      {"{\"a\": tru}", "not valid JSON"},
      {"{'a': 1}", "not valid JSON"},
      {"{\"a\xff\": 1}", "not valid JSON"},
      {"{\"a\xc0\x80\": 1}", "not valid JSON"},
      {"{\"\xed\xa0\x80\": 1}", "not valid JSON"},
      {R"({"\ud800": 1})", "not valid JSON"},
      {"{\"a\nb\": 1}", "not valid JSON"},
      {entry(good + ","), "not valid JSON"},
      {std::string("{}\0garbage", 10), "holds a zero byte"},
      {std::string("{\"a\0\": 1}", 9), "holds a zero byte"},
      // names
      {"{\"a\":{" + good + "},\"a\":{" + good + "}}", "the name \"a\" twice"},
      {"{\"a\":{" + good + "},\"\\u0061\":{" + good + "}}", "the name \"a\" twice"},
      {R"({"__metadata__":{},"__metadata__":{}})", "the name \"__metadata__\" twice"},
      {R"({"__metadata__":{"k":"1","k":"2"}})", "__metadata__ holds the name \"k\" twice"},
      {entry(R"("dtype":"F32",)" + good), "tensor \"a\": holds dtype twice"},
      {entry(good + R"(,"data_offsets":[0,4])"), "tensor \"a\": holds data_offsets twice"},
      // entries
      {R"({"a":[]})", "tensor \"a\": is not an object"},
      {R"({"a":3})", "tensor \"a\": is not an object"},
      {R"({"a":"x"})", "tensor \"a\": is not an object"},
      {R"({"a":null})", "tensor \"a\": is not an object"},
      {"{\"" + std::string(1000, 'a') + "\":0}", "tensor \"" + std::string(200, 'a') + "…\": is not an object"},
      {R"({"a\u001b[31m":0})", "tensor \"a\\u001b[31m\": is not an object"},
      {R"({"a":{}})", "exactly dtype, shape and data_offsets"},
      {entry(R"("dtype":"F32","shape":[1])"), "exactly dtype, shape and data_offsets"},
      {entry(R"("dtype":"F32","data_offsets":[0,4])"), "exactly dtype, shape and data_offsets"},
      {entry(R"("shape":[1],"data_offsets":[0,4])"), "exactly dtype, shape and data_offsets"},
      {entry(good + R"(,"more":1)"), "exactly dtype, shape and data_offsets, found \"more\""},
      {entry(good + R"(,"Dtype":"F32")"), "exactly dtype, shape and data_offsets, found \"Dtype\""},
      // dtype
      {with_dtype("32"), "dtype is not a string"},
      {with_dtype("[\"F32\"]"), "dtype is not a string"},
      {with_dtype("{}"), "dtype is not a string"},
      {with_dtype("null"), "dtype is not a string"},
      {with_dtype("\"f32\""), "dtype \"f32\" is not supported"},
      {with_dtype("\"F8_E4M3\""), "dtype \"F8_E4M3\" is not supported (F64, F32, BF16, F16, I64, I32 and U8 are)"},
      {with_dtype("\"F8_E4M3\""), "dtype \"F8_E4M3\" is not supported"},
      {with_dtype("\"BOOL\""), "dtype \"BOOL\" is not supported"},
      {with_dtype("\"F32 \""), "dtype \"F32 \" is not supported"},
      // shape
      {with_shape("1"), "shape is not a list"},
      {with_shape("{\"0\":1}"), "shape is not a list"},
      {with_shape("\"1\""), "shape is not a list"},
      {with_shape("[1,1,1,1,1,1,1,1,1]"), "shape has more than 8 numbers"},
      {with_shape("[-1]"), "shape " + outside},
      {with_shape("[-0]"), "shape " + outside},
      {with_shape("[1.0]"), "shape " + outside},
      {with_shape("[1e0]"), "shape " + outside},
      {with_shape("[\"1\"]"), "shape " + outside},
      {with_shape("[true]"), "shape " + outside},
      {with_shape("[null]"), "shape " + outside},
      {with_shape("[[1]]"), "shape " + outside},
      {with_shape("[{}]"), "shape " + outside},
      {with_shape("[01]"), "not valid JSON"},
      {with_shape("[18446744073709551615]"), "shape holds 18446744073709551615, which is too large"},
      {with_shape("[99999999999999999999]"), "shape " + outside},
      {with_shape("[4611686018427387904]"), "too large to count"},
      {with_shape("[4294967296,4294967296]"), "too large to count"},
      {with_shape("[2147483648,2147483648,2,0]"), "too large to count"},
      {with_shape("[2]"), "dtype and shape need 8 bytes, data_offsets span 4"},
      {entry(R"("dtype":"F64","shape":[],"data_offsets":[0,4])"), "dtype and shape need 8 bytes"},
      {with_shape("[0]"), "dtype and shape need 0 bytes, data_offsets span 4"},
      // data_offsets
      {with_offsets("0"), "data_offsets is not a list"},
      {with_offsets("{\"0\":4}"), "data_offsets is not a list"},
      {with_offsets("[]"), "data_offsets is not a pair"},
      {with_offsets("[0]"), "data_offsets is not a pair"},
      {with_offsets("[0,4,8]"), "data_offsets has more than 2 numbers"},
      {with_offsets("[-4,0]"), "data_offsets " + outside},
      {with_offsets("[0.5,4]"), "data_offsets " + outside},
      {with_offsets("[0,\"4\"]"), "data_offsets " + outside},
      {with_offsets("[0,[4]]"), "data_offsets " + outside},
      {with_offsets("[18446744073709551612,18446744073709551615]"), "which is too large"},
      {with_offsets("[4,0]"), "data_offsets [4, 0] lie outside the 4 bytes of data"},
      {with_offsets("[0,8]"), "data_offsets [0, 8] lie outside the 4 bytes of data"},
      {with_offsets("[9223372036854775803,9223372036854775807]"), "lie outside the 4 bytes of data"},
      // how entries lie beside each other
      {"{\"a\":" + bytes_at(0, 2) + ",\"b\":" + bytes_at(1, 4) + "}",
       "begins at 1, the data before it ends at 2: an overlap"},
      {"{\"a\":" + bytes_at(0, 4) + ",\"b\":" + bytes_at(0, 4) + "}", "an overlap"},
      {"{\"a\":" + bytes_at(0, 4) + ",\"b\":" + bytes_at(2, 2) + "}", "an overlap"},
      {"{\"b\":" + bytes_at(0, 1) + ",\"a\":" + bytes_at(2, 4) + "}",
       "begins at 2, the data before it ends at 1: a hole"},
      {"{\"a\":" + bytes_at(1, 4) + "}", "a hole"},
      {"{\"a\":" + bytes_at(0, 3) + "}", "the tensors end at byte 3 of 4 bytes of data"},
      {"{}", "the tensors end at byte 0 of 4 bytes of data"},
      // metadata
      {R"({"__metadata__":[]})", "__metadata__ is not an object"},
      {R"({"__metadata__":"x"})", "__metadata__ is not an object"},
      {R"({"__metadata__":null})", "__metadata__ is not an object"},
      {R"({"__metadata__":{"n":1}})", "__metadata__ \"n\" is not a string"},
      {R"({"__metadata__":{"n":{}}})", "__metadata__ \"n\" is not a string"},
      {R"({"__metadata__":{"n":["x"]}})", "__metadata__ \"n\" is not a string"},
  };
  for (const Case& c : cases) {
    write(c.json, 4);
    expect_contains(refusal(), c.rule);
  }
}

// What would fill the memory of a parser that first builds a tree of everything.
TEST_F(SafetensorsTest, RefusesBombsInBoundedMemory) {
  constexpr size_t kBytes = size_t{16} << 20;
  std::string lists = "{\"a\":{\"shape\":[", names = "{", metadata = "{\"__metadata__\":{";
  while (lists.size() < kBytes) lists += "0,";
  while (names.size() < kBytes) names += "\"a" + std::to_string(names.size()) + "\":{},";
  while (metadata.size() < kBytes) metadata += "\"" + std::to_string(metadata.size()) + "\":\"\",";
  struct Case {
    std::string json, rule;
  };
  const std::string run = "no string or number begins in the 1048576 bytes";
  const Case cases[] = {{"{\"a\":" + std::string(kBytes, '['), run},
                        {"{\"a\":{\"shape\":" + std::string(kBytes, '['), run},
                        {"{\"__metadata__\":{\"a\":" + std::string(kBytes, '['), run},
                        {lists, "more than 8 numbers"},
                        {names, "must have exactly"},
                        {metadata, "more than 65536 entries"},
                        {"{\"" + std::string(kBytes, 'a') + "\":0}", run},
                        {"{\"a\":{\"shape\":[" + std::string(kBytes, '1'), run}};
  auto peak_bytes = [] {
    rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return int64_t{usage.ru_maxrss} << 10;
  };
  for (const Case& c : cases) {
    write(c.json, 0);
    const int64_t before = peak_bytes();
    expect_contains(refusal(), c.rule);
    EXPECT_LE(peak_bytes() - before, int64_t{8 * kBytes}) << c.rule;
  }
}

// Whatever is accepted has entries that lie end to end and fit their shapes.
TEST_F(SafetensorsTest, RandomChangesAreRefusedOrHarmless) {
  const std::string header = make_safetensors_header(
      {{"a", DType::kF32, {2, 3}}, {"b", DType::kU8, {8}}, {"c", DType::kI32, {1, 0}}}, {{"k", "v"}});
  const std::string pool = "{}[]\",:0123456789aFU\\ \n\0e-.";
  std::mt19937 random(5);
  int accepted = 0;
  for (int trial = 0; trial < 3000; ++trial) {
    std::string changed = header + std::string(32, 'x');
    for (int change = 0; change <= trial % 3; ++change) {
      const size_t at = random() % header.size();
      switch (random() % 4) {
        case 0: changed[at] = static_cast<char>(changed[at] ^ (1 << random() % 8)); break;
        case 1: changed[at] = pool[random() % pool.size()]; break;
        case 2: changed.erase(at, 1); break;
        default: changed.insert(at, 1, pool[random() % pool.size()]);
      }
    }
    write(changed);
    try {
      const SafetensorsHeader read = read_safetensors_header(path("f"));
      ++accepted;
      std::vector<std::pair<int64_t, int64_t>> ranges;
      for (const auto& [name, e] : read.entries) {
        int64_t bytes = size_of(e.dtype);
        for (int64_t dim : e.shape) bytes *= dim;
        ASSERT_EQ(e.end - e.begin, bytes);
        ranges.push_back({e.begin, e.end});
      }
      std::sort(ranges.begin(), ranges.end());
      int64_t position = 0;
      for (auto [begin, end] : ranges) {
        ASSERT_EQ(begin, position);
        position = end;
      }
      ASSERT_EQ(position, static_cast<int64_t>(changed.size()) - read.data_offset);
    } catch (const CheckpointError&) {}
  }
  EXPECT_GT(accepted, 0) << "a changed name is still a header";
}

}  // namespace
}  // namespace braid
