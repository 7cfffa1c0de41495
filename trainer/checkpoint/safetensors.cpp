#include "trainer/checkpoint/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "trainer/checkpoint/json_text.h"

namespace braid {
namespace {

using Json = nlohmann::json;
static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian");

constexpr int64_t kPrefixBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the limit of the reference implementation
constexpr size_t kMaxRank = 8;
constexpr size_t kMaxMetadata = 65536;  // entries are short in text and not in memory
constexpr const char* kMetadataName = "__metadata__";
constexpr const char* kFields[] = {"dtype", "shape", "data_offsets"};
constexpr unsigned kAllFields = 7;

std::string quoted(const std::string& text) { return Json(text).dump(); }

// Takes the header value by value and refuses the first that breaks a rule, so memory is only ever taken for entries
// that are right, and nothing nests deeper than the format does.
class HeaderParser : public nlohmann::json_sax<Json> {
 public:
  HeaderParser(const std::string& path, int64_t data_bytes) : path_(path), data_bytes_(data_bytes) {}

  SafetensorsHeader header;

  bool null() override { return other_value(); }
  bool boolean(bool) override { return other_value(); }
  bool number_integer(number_integer_t) override { return other_value(); }
  bool number_float(number_float_t, const string_t&) override { return other_value(); }
  bool binary(binary_t&) override { return other_value(); }

  bool number_unsigned(number_unsigned_t value) override {
    if (at_ != At::kShape && at_ != At::kOffsets) return other_value();
    check<CheckpointError>(value <= static_cast<uint64_t>(INT64_MAX), where(), ": ", field_, " holds ", value,
                           ", which is too large");
    std::vector<int64_t>& list = at_ == At::kShape ? entry_.shape : offsets_;
    const size_t limit = at_ == At::kShape ? kMaxRank : 2;
    check<CheckpointError>(list.size() < limit, where(), ": ", field_, " has more than ", limit, " numbers");
    list.push_back(static_cast<int64_t>(value));
    return true;
  }

  bool string(string_t& value) override {
    if (at_ == At::kMetadata) {
      header.metadata.emplace(field_, std::move(value));
      return true;
    }
    if (at_ != At::kEntry || field_ != "dtype") return other_value();
    const auto dtype = find_dtype(value);
    check<CheckpointError>(dtype.has_value(), where(), ": dtype ", shown_name(value),
                           " is not supported (F64, F32, BF16, F16, I64, I32 and U8 are)");
    entry_.dtype = *dtype;
    return true;
  }

  bool start_object(size_t) override {
    switch (at_) {
      case At::kStart: at_ = At::kHeader; return true;
      case At::kHeader:
        entry_ = {};
        offsets_.clear();
        fields_ = 0;
        at_ = name_ == kMetadataName ? At::kMetadata : At::kEntry;
        return true;
      default: return other_value();
    }
  }

  bool key(string_t& value) override {
    if (at_ == At::kHeader) {
      name_ = value;
      const bool is_new =
          name_ == kMetadataName ? !std::exchange(has_metadata_, true) : !header.entries.contains(name_);
      check<CheckpointError>(is_new, path_, ": the safetensors header holds the name ", shown_name(name_), " twice");
      return true;
    }
    field_ = value;
    if (at_ == At::kMetadata) {
      check<CheckpointError>(!header.metadata.contains(field_), path_, ": __metadata__ holds the name ",
                             shown_name(field_), " twice");
      check<CheckpointError>(header.metadata.size() < kMaxMetadata, path_, ": __metadata__ has more than ",
                             kMaxMetadata, " entries");
      return true;
    }
    const auto known = std::find(std::begin(kFields), std::end(kFields), field_);
    check<CheckpointError>(known != std::end(kFields), where(),
                           ": must have exactly dtype, shape and data_offsets, found ", shown_name(field_));
    const unsigned bit = 1u << (known - std::begin(kFields));
    check<CheckpointError>((fields_ & bit) == 0, where(), ": holds ", field_, " twice");
    fields_ |= bit;
    return true;
  }

  bool end_object() override {
    if (at_ == At::kEntry) end_entry();
    at_ = at_ == At::kHeader ? At::kEnd : At::kHeader;
    return true;
  }

  bool start_array(size_t) override {
    if (at_ != At::kEntry || field_ == "dtype") return other_value();
    at_ = field_ == "shape" ? At::kShape : At::kOffsets;
    return true;
  }

  bool end_array() override {
    at_ = At::kEntry;
    return true;
  }

  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception&) override {
    throw CheckpointError(
        concat(path_, ": the safetensors header is not valid JSON in UTF-8 at byte ", kPrefixBytes + position));
  }

 private:
  // Where the next value belongs.
  enum class At { kStart, kHeader, kMetadata, kEntry, kShape, kOffsets, kEnd };

  std::string where() const { return path_ + ": tensor " + shown_name(name_); }

  // A value where its kind does not belong.
  bool other_value() const {
    switch (at_) {
      case At::kStart:
      case At::kEnd: throw CheckpointError(path_ + ": the safetensors header is not an object");
      case At::kHeader:
        if (name_ == kMetadataName) throw CheckpointError(path_ + ": __metadata__ is not an object");
        throw CheckpointError(where() + ": is not an object");
      case At::kMetadata: throw CheckpointError(path_ + ": __metadata__ " + shown_name(field_) + " is not a string");
      case At::kEntry:
        throw CheckpointError(where() + ": " + field_ + (field_ == "dtype" ? " is not a string" : " is not a list"));
      case At::kShape:
      case At::kOffsets:
        throw CheckpointError(where() + ": " + field_ + " holds something else than non-negative integers");
    }
    return false;
  }

  void end_entry() {
    check<CheckpointError>(fields_ == kAllFields, where(), ": must have exactly dtype, shape and data_offsets");
    check<CheckpointError>(offsets_.size() == 2, where(), ": data_offsets is not a pair");
    int64_t bytes = size_of(entry_.dtype);
    for (int64_t dim : entry_.shape)
      check<CheckpointError>(!__builtin_mul_overflow(bytes, dim, &bytes), where(), ": its shape is too large to count");
    const int64_t begin = offsets_[0], end = offsets_[1];
    check<CheckpointError>(begin <= end && end <= data_bytes_, where(), ": data_offsets [", begin, ", ", end,
                           "] lie outside the ", data_bytes_, " bytes of data");
    check<CheckpointError>(end - begin == bytes, where(), ": dtype and shape need ", bytes,
                           " bytes, data_offsets span ", end - begin);
    entry_.begin = begin;
    entry_.end = end;
    entry_.shape.shrink_to_fit();
    header.entries.emplace(name_, std::move(entry_));
  }

  const std::string& path_;
  const int64_t data_bytes_;
  At at_ = At::kStart;
  bool has_metadata_ = false;
  std::string name_, field_;
  unsigned fields_ = 0;  // of the entry that is open, one bit for each that was there
  SafetensorsEntry entry_{};
  std::vector<int64_t> offsets_;
};

void check_no_overlap_no_hole(const std::string& path, const SafetensorsHeader& header, int64_t data_bytes) {
  std::vector<const std::pair<const std::string, SafetensorsEntry>*> in_order;
  for (const auto& entry : header.entries) in_order.push_back(&entry);
  std::sort(in_order.begin(), in_order.end(), [](const auto* a, const auto* b) {
    return std::pair(a->second.begin, a->second.end) < std::pair(b->second.begin, b->second.end);
  });
  int64_t position = 0;
  for (const auto* named : in_order) {
    const auto& [name, entry] = *named;
    check<CheckpointError>(entry.begin == position, path, ": tensor ", shown_name(name), ": its data begins at ",
                           entry.begin, ", the data before it ends at ", position, ": ",
                           entry.begin < position ? "an overlap" : "a hole");
    position = entry.end;
  }
  check<CheckpointError>(position == data_bytes, path, ": the tensors end at byte ", position, " of ", data_bytes,
                         " bytes of data");
}

}  // namespace

SafetensorsHeader read_safetensors_header(const std::string& path) {
  return read_safetensors_header(StoredFile(path, Links::kFollow));
}

SafetensorsHeader read_safetensors_header(const StoredFile& file) {
  const std::string& path = file.path();
  check<CheckpointError>(file.size() >= kPrefixBytes, path, ": is ", file.size(),
                         " bytes long, too short for a safetensors file");
  uint64_t header_bytes = 0;
  file.read(&header_bytes, kPrefixBytes, 0);
  check<CheckpointError>(header_bytes >= 2 && header_bytes <= kMaxHeaderBytes &&
                             header_bytes <= static_cast<uint64_t>(file.size() - kPrefixBytes),
                         path, ": declares a safetensors header of ", header_bytes, " bytes in a file of ", file.size(),
                         " (at least 2, at most ", kMaxHeaderBytes, ")");
  const std::string text = read_json_text(file, kPrefixBytes, static_cast<int64_t>(header_bytes));
  check<CheckpointError>(text[0] == '{', path, ": the safetensors header does not start with {");

  const int64_t data_offset = kPrefixBytes + static_cast<int64_t>(header_bytes);
  const int64_t data_bytes = file.size() - data_offset;
  HeaderParser parser(path, data_bytes);
  Json::sax_parse(text, &parser);
  parser.header.data_offset = data_offset;
  check_no_overlap_no_hole(path, parser.header, data_bytes);
  return std::move(parser.header);
}

std::string make_safetensors_header(const std::vector<SafetensorsTensor>& tensors,
                                    const std::map<std::string, std::string>& metadata) {
  std::string text = concat('{', quoted(kMetadataName), ':', Json(metadata).dump());
  std::set<std::string> names = {kMetadataName};
  int64_t position = 0;
  for (const SafetensorsTensor& tensor : tensors) {
    check<CheckpointError>(names.insert(tensor.name).second, "tensor ", shown_name(tensor.name),
                           " cannot be stored: the name is taken");
    int64_t bytes = size_of(tensor.dtype);
    for (int64_t dim : tensor.shape) bytes *= dim;
    text += concat(",", quoted(tensor.name), ":{\"dtype\":\"", name_of(tensor.dtype),
                   "\",\"shape\":", Json(tensor.shape).dump(), ",\"data_offsets\":[", position, ",", position + bytes,
                   "]}");
    position += bytes;
  }
  text += "}";
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t length = text.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof length) + text;
}

std::optional<DType> find_dtype(std::string_view name) {
  for (DType dtype : {DType::kF64, DType::kF32, DType::kBF16, DType::kF16, DType::kI64, DType::kI32, DType::kU8})
    if (name == name_of(dtype)) return dtype;
  return std::nullopt;
}

}  // namespace braid
