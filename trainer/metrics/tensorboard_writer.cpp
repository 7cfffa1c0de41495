#include "trainer/metrics/tensorboard_writer.h"

#include <unistd.h>

#include <bit>
#include <cerrno>
#include <chrono>
#include <filesystem>

#include "kernels/core/crc32c.h"
#include "kernels/core/durable_file.h"
#include "kernels/core/error.h"
#include "kernels/core/process_info.h"

namespace braid {
namespace {

// ---- Protocol buffers, as far as an event needs them: a field is a key (number and wire type) and its value.

template <class Unsigned>
void append_little_endian(std::string& out, Unsigned value) {
  for (size_t i = 0; i < sizeof value; ++i) out += static_cast<char>(value >> 8 * i & 0xff);
}

std::string varint(uint64_t value) {
  std::string out;
  for (; value >= 0x80; value >>= 7) out += static_cast<char>((value & 0x7f) | 0x80);
  return out + static_cast<char>(value);
}

enum WireType { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };
std::string key(int field, WireType type) { return varint(static_cast<uint64_t>(field) << 3 | type); }

std::string int_field(int field, int64_t value) { return key(field, kVarint) + varint(static_cast<uint64_t>(value)); }
std::string bytes_field(int field, const std::string& bytes) {
  return key(field, kBytes) + varint(bytes.size()) + bytes;
}
std::string double_field(int field, double value) {
  std::string out = key(field, kFixed64);
  append_little_endian(out, std::bit_cast<uint64_t>(value));
  return out;
}
std::string float_field(int field, float value) {
  std::string out = key(field, kFixed32);
  append_little_endian(out, std::bit_cast<uint32_t>(value));
  return out;
}
std::string doubles_field(int field, const std::vector<double>& values) {  // packed
  std::string bytes;
  for (const double value : values) append_little_endian(bytes, std::bit_cast<uint64_t>(value));
  return bytes_field(field, bytes);
}

// Numbers of the fields that are used.
namespace event {
constexpr int kWallTime = 1, kStep = 2, kFileVersion = 3, kSummary = 5, kSessionLog = 7;
}
namespace summary {
constexpr int kValue = 1, kTag = 1, kSimpleValue = 2, kHistogram = 5;
}
namespace histogram {
constexpr int kMin = 1, kMax = 2, kNum = 3, kSum = 4, kSumSquares = 5, kBucketLimit = 6, kBucket = 7;
}
constexpr int kSessionStatus = 1, kSessionStart = 1;

std::string value_of_summary(const std::string& tag, const std::string& value) {
  return bytes_field(summary::kValue, bytes_field(summary::kTag, tag) + value);
}

// ---- Records

void append_masked_crc(std::string& out, const char* data, size_t bytes) {
  const uint32_t crc = crc32c(data, bytes);
  append_little_endian(out, (crc >> 15 | crc << 17) + 0xa282ead8u);
}

std::string record(const std::string& payload) {
  std::string out;
  append_little_endian(out, uint64_t{payload.size()});
  append_masked_crc(out, out.data(), sizeof(uint64_t));
  out += payload;
  append_masked_crc(out, payload.data(), payload.size());
  return out;
}

double seconds_since_1970() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

std::string new_file_name() {
  return concat("events.out.tfevents.", static_cast<int64_t>(seconds_since_1970()), ".", host_name(), ".", getpid());
}

}  // namespace

TensorBoardWriter::TensorBoardWriter(const std::string& folder, int64_t last_step) {
  create_folder(folder);
  const std::string base = folder + "/" + new_file_name();
  path_ = base;
  for (int i = 1; std::filesystem::exists(path_); ++i) path_ = concat(base, ".", i);  // two starts within a second
  file_ = std::fopen(path_.c_str(), "wbe");
  check<IoError>(file_ != nullptr, path_, ": cannot be opened for writing: ", reason(errno));
  std::setvbuf(file_, nullptr, _IONBF, 0);
  const bool written =
      write_event(0, bytes_field(event::kFileVersion, "brain.Event:2")) &&
      write_event(last_step + 1, bytes_field(event::kSessionLog, int_field(kSessionStatus, kSessionStart)));
  if (!written) std::fclose(file_);
  check<IoError>(written, path_, ": cannot be written");
}

TensorBoardWriter::~TensorBoardWriter() { std::fclose(file_); }

bool TensorBoardWriter::write(const MetricsLine& line) {
  std::string values;
  int64_t step = 0;
  for (const auto& [name, value] : line.fields()) {
    const auto* integer = std::get_if<int64_t>(&value);
    if (name == "step" && integer) step = *integer;
    else
      values += value_of_summary(
          name, float_field(summary::kSimpleValue,
                            integer ? static_cast<float>(*integer) : static_cast<float>(std::get<double>(value))));
  }
  return write_event(step, bytes_field(event::kSummary, values));
}

bool TensorBoardWriter::write_histogram(int64_t step, const std::string& name, const std::vector<int64_t>& counts) {
  std::vector<double> limits, buckets;
  double num = 0, sum = 0, sum_squares = 0;
  for (size_t item = 0; item < counts.size(); ++item) {
    const auto count = static_cast<double>(counts[item]), x = static_cast<double>(item);
    limits.push_back(x + 0.5);
    buckets.push_back(count);
    num += count, sum += count * x, sum_squares += count * x * x;
  }
  const std::string h = double_field(histogram::kMin, -0.5) +
                        double_field(histogram::kMax, static_cast<double>(counts.size()) - 0.5) +
                        double_field(histogram::kNum, num) + double_field(histogram::kSum, sum) +
                        double_field(histogram::kSumSquares, sum_squares) +
                        doubles_field(histogram::kBucketLimit, limits) + doubles_field(histogram::kBucket, buckets);
  return write_event(step, bytes_field(event::kSummary, value_of_summary(name, bytes_field(summary::kHistogram, h))));
}

bool TensorBoardWriter::write_event(int64_t step, const std::string& fields) {
  const std::string bytes =
      record(double_field(event::kWallTime, seconds_since_1970()) + int_field(event::kStep, step) + fields);
  return std::fwrite(bytes.data(), 1, bytes.size(), file_) == bytes.size();
}

}  // namespace braid
