#include "trainer/metrics/tensorboard_writer.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>

#include "kernels/core/crc32c.h"
#include "kernels/core/error.h"
#include "tests/file_testing.h"

namespace braid {
namespace {

using testing::bytes_of;

template <class Unsigned>
Unsigned little_endian(const std::string& bytes, size_t at) {
  Unsigned value = 0;
  for (size_t i = 0; i < sizeof value; ++i)
    value |= static_cast<Unsigned>(static_cast<Unsigned>(static_cast<unsigned char>(bytes.at(at + i))) << 8 * i);
  return value;
}

uint32_t masked(const std::string& bytes) {
  const uint32_t crc = crc32c_by_table(bytes.data(), bytes.size());
  return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

// The payloads of a file; both checksums of every record are held to their bytes.
std::vector<std::string> records_of(const std::string& path) {
  const std::string bytes = bytes_of(path);
  std::vector<std::string> records;
  size_t at = 0;
  while (at < bytes.size()) {
    const auto size = little_endian<uint64_t>(bytes, at);
    EXPECT_EQ(little_endian<uint32_t>(bytes, at + 8), masked(bytes.substr(at, 8)));
    records.push_back(bytes.substr(at + 12, size));
    EXPECT_EQ(records.back().size(), size);
    EXPECT_EQ(little_endian<uint32_t>(bytes, at + 12 + size), masked(records.back()));
    at += 16 + size;
  }
  EXPECT_EQ(at, bytes.size());
  return records;
}

uint64_t take_varint(const std::string& bytes, size_t& at) {
  uint64_t value = 0;
  for (int shift = 0;; shift += 7) {
    const auto byte = static_cast<unsigned char>(bytes.at(at++));
    value |= uint64_t{byte & 0x7fu} << shift;
    if (byte < 0x80) return value;
  }
}

// Fields of a message, in order: their bytes, or for a varint its value as eight bytes.
std::multimap<int, std::string> fields_of(const std::string& message) {
  std::multimap<int, std::string> fields;
  for (size_t at = 0; at < message.size();) {
    const uint64_t key = take_varint(message, at);
    size_t size = 0;
    switch (key & 7) {
      case 0: {
        const uint64_t value = take_varint(message, at);
        std::string bytes(8, '\0');
        std::memcpy(bytes.data(), &value, 8);
        fields.emplace(key >> 3, bytes);
        continue;
      }
      case 1: size = 8; break;
      case 2: size = take_varint(message, at); break;
      case 5: size = 4; break;
      default: ADD_FAILURE() << "wire type " << (key & 7); return fields;
    }
    fields.emplace(key >> 3, message.substr(at, size));
    at += size;
  }
  return fields;
}

std::string only(const std::multimap<int, std::string>& fields, int number) {
  EXPECT_EQ(fields.count(number), 1u) << "field " << number;
  return fields.count(number) == 1 ? fields.find(number)->second : std::string();
}

double double_of(const std::string& bytes, size_t at = 0) {
  return std::bit_cast<double>(little_endian<uint64_t>(bytes, at));
}
float float_of(const std::string& bytes) { return std::bit_cast<float>(little_endian<uint32_t>(bytes, 0)); }

class TensorBoardFile : public testing::FolderTest {};

TEST_F(TensorBoardFile, BeginsWithItsVersionAndTheStepItGoesOnFrom) {
  const TensorBoardWriter writer(path("tensorboard"), 41);
  const auto records = records_of(writer.path());
  ASSERT_EQ(records.size(), 2u);
  EXPECT_EQ(only(fields_of(records[0]), 3), "brain.Event:2");
  EXPECT_GT(double_of(only(fields_of(records[0]), 1)), 1.7e9);  // seconds since 1970
  const auto start = fields_of(records[1]);
  EXPECT_EQ(little_endian<uint64_t>(only(start, 2), 0), 42u);
  EXPECT_EQ(only(start, 7), std::string("\x08\x01", 2));  // SessionLog { status: START }
}

TEST_F(TensorBoardFile, HoldsEveryFieldOfALineAsAScalar) {
  TensorBoardWriter writer(path("tensorboard"), 0);
  MetricsLine line;
  line.set("step", int64_t{300});
  line.set("tokens", int64_t{4096});
  line.set("train/loss_lm", 2.5);
  line.set("train/grad_norm", std::numeric_limits<double>::quiet_NaN());
  ASSERT_TRUE(writer.write(line));
  const auto records = records_of(writer.path());
  ASSERT_EQ(records.size(), 3u);
  const auto event = fields_of(records[2]);
  EXPECT_EQ(little_endian<uint64_t>(only(event, 2), 0), 300u);
  std::map<std::string, float> scalars;
  const auto values = fields_of(only(event, 5));
  for (const auto& [number, bytes] : values) {
    EXPECT_EQ(number, 1);
    const auto value = fields_of(bytes);
    scalars[only(value, 1)] = float_of(only(value, 2));
  }
  EXPECT_EQ(scalars.size(), 3u);
  EXPECT_EQ(scalars["tokens"], 4096);
  EXPECT_EQ(scalars["train/loss_lm"], 2.5f);
  EXPECT_TRUE(std::isnan(scalars["train/grad_norm"]));
}

TEST_F(TensorBoardFile, HoldsCountsAsAHistogramWithABucketForEachItem) {
  TensorBoardWriter writer(path("tensorboard"), 0);
  ASSERT_TRUE(writer.write_histogram(7, "moe/layer_00/expert_load", {5, 0, 3}));
  const auto value = fields_of(only(fields_of(only(fields_of(records_of(writer.path()).back()), 5)), 1));
  EXPECT_EQ(only(value, 1), "moe/layer_00/expert_load");
  const auto histogram = fields_of(only(value, 5));
  EXPECT_EQ(double_of(only(histogram, 1)), -0.5);
  EXPECT_EQ(double_of(only(histogram, 2)), 2.5);
  EXPECT_EQ(double_of(only(histogram, 3)), 8);   // how many
  EXPECT_EQ(double_of(only(histogram, 4)), 6);   // 5 * 0 + 3 * 2
  EXPECT_EQ(double_of(only(histogram, 5)), 12);  // 3 * 2^2
  const std::string limits = only(histogram, 6), counts = only(histogram, 7);
  ASSERT_EQ(limits.size(), 24u);
  ASSERT_EQ(counts.size(), 24u);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(double_of(limits, size_t(8 * i)), i + 0.5);
  EXPECT_EQ(double_of(counts, 0), 5);
  EXPECT_EQ(double_of(counts, 16), 3);
}

TEST_F(TensorBoardFile, EveryStartHasAFileOfItsOwn) {
  const TensorBoardWriter first(path("tensorboard"), 0), second(path("tensorboard"), 0);
  EXPECT_NE(first.path(), second.path());
}

TEST_F(TensorBoardFile, SaysThatItIsFull) {
  TensorBoardWriter writer(path("tensorboard"), 0);
  const testing::FileSizeLimit limit(200);
  EXPECT_FALSE(writer.write_histogram(1, "x", std::vector<int64_t>(100)));
}

TEST_F(TensorBoardFile, RefusesAFolderThatCannotBe) {
  testing::write_bytes(path("file"), "");
  EXPECT_THROW(TensorBoardWriter(path("file") + "/tensorboard", 0), IoError);
}

}  // namespace
}  // namespace braid
