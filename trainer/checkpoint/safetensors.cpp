#include "trainer/checkpoint/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <unordered_set>

namespace braid {
namespace {

using Json = nlohmann::json;
static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian");

constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr int kMaxDepth = 3;  // header, entry, shape
constexpr size_t kMaxRank = 8;

// Parses the header and refuses what a plain parser lets pass: names that appear twice, deep nesting.
Json parse_strictly(const std::string& path, const std::string& text) {
  std::vector<std::unordered_set<std::string>> names;  // of the objects that are open
  std::string problem;
  const auto watch = [&](int depth, Json::parse_event_t event, Json& value) {
    if (depth > kMaxDepth) problem = "nests deeper than an entry's shape";
    if (event == Json::parse_event_t::object_start) names.emplace_back();
    if (event == Json::parse_event_t::object_end) names.pop_back();
    if (event == Json::parse_event_t::key && !names.back().insert(value.get<std::string>()).second)
      problem = "holds the name " + value.get<std::string>() + " twice";
    if (!problem.empty()) throw CheckpointError(path + ": the safetensors header " + problem);
    return true;
  };
  try {
    return Json::parse(text, watch);
  } catch (const Json::exception&) {
    throw CheckpointError(path + ": the safetensors header is not valid JSON in UTF-8");
  }
}

DType dtype_named(const std::string& where, const std::string& name) {
  for (DType dtype : {DType::kF64, DType::kF32, DType::kBF16, DType::kI64, DType::kI32, DType::kU8})
    if (name == name_of(dtype)) return dtype;
  throw CheckpointError(where + ": unsupported dtype " + name);
}

int64_t non_negative(const std::string& where, const char* what, const Json& value) {
  check<CheckpointError>(value.is_number_unsigned() && value.get<uint64_t>() <= uint64_t(INT64_MAX), where, ": ", what,
                         " is not a non-negative integer");
  return value.get<int64_t>();
}

SafetensorsEntry read_entry(const std::string& where, const Json& json, int64_t data_bytes) {
  check<CheckpointError>(json.is_object(), where, ": is not an object");
  check<CheckpointError>(
      json.size() == 3 && json.contains("dtype") && json.contains("shape") && json.contains("data_offsets"), where,
      ": must have exactly dtype, shape and data_offsets");
  check<CheckpointError>(json["dtype"].is_string(), where, ": dtype is not a string");
  SafetensorsEntry entry;
  entry.dtype = dtype_named(where, json["dtype"].get<std::string>());
  check<CheckpointError>(json["shape"].is_array() && json["shape"].size() <= kMaxRank, where,
                         ": shape is not a list of at most ", kMaxRank, " numbers");
  int64_t bytes = size_of(entry.dtype);
  for (const Json& dim : json["shape"]) {
    entry.shape.push_back(non_negative(where, "a dimension of shape", dim));
    check<CheckpointError>(!__builtin_mul_overflow(bytes, entry.shape.back(), &bytes), where, ": shape overflows");
  }
  const Json& offsets = json["data_offsets"];
  check<CheckpointError>(offsets.is_array() && offsets.size() == 2, where, ": data_offsets is not a pair");
  entry.begin = non_negative(where, "data_offsets", offsets[0]);
  entry.end = non_negative(where, "data_offsets", offsets[1]);
  check<CheckpointError>(entry.begin <= entry.end && entry.end <= data_bytes, where, ": data_offsets [", entry.begin,
                         ", ", entry.end, ") lie outside the ", data_bytes, " bytes of data");
  check<CheckpointError>(entry.end - entry.begin == bytes, where, ": dtype and shape need ", bytes,
                         " bytes, data_offsets span ", entry.end - entry.begin);
  return entry;
}

}  // namespace

SafetensorsHeader read_safetensors_header(const std::string& path) {
  std::ifstream in(path, std::ios::binary | std::ios::ate);
  check<CheckpointError>(bool(in), path, ": cannot be opened");
  const auto file_bytes = static_cast<uint64_t>(in.tellg());
  check<CheckpointError>(file_bytes >= 8, path, ": is ", file_bytes, " bytes long, too short for a safetensors file");
  in.seekg(0);
  uint64_t header_bytes = 0;
  in.read(reinterpret_cast<char*>(&header_bytes), 8);
  check<CheckpointError>(header_bytes >= 2 && header_bytes <= kMaxHeaderBytes && header_bytes <= file_bytes - 8, path,
                         ": declares a safetensors header of ", header_bytes, " bytes in a file of ", file_bytes);
  std::string text(header_bytes, '\0');
  in.read(text.data(), static_cast<std::streamsize>(header_bytes));
  check<CheckpointError>(bool(in), path, ": the safetensors header cannot be read");
  check<CheckpointError>(text[0] == '{', path, ": the safetensors header does not start with {");

  const Json json = parse_strictly(path, text);
  SafetensorsHeader header;
  header.data_offset = static_cast<int64_t>(8 + header_bytes);
  const int64_t data_bytes = static_cast<int64_t>(file_bytes) - header.data_offset;
  for (const auto& [name, value] : json.items()) {
    if (name == "__metadata__") {
      check<CheckpointError>(value.is_object(), path, ": __metadata__ is not an object");
      for (const auto& [key, text_value] : value.items()) {
        check<CheckpointError>(text_value.is_string(), path, ": __metadata__ ", key, " is not a string");
        header.metadata[key] = text_value.get<std::string>();
      }
    } else {
      header.entries[name] = read_entry(path + ": tensor " + name, value, data_bytes);
    }
  }

  std::vector<std::pair<const SafetensorsEntry*, const std::string*>> in_order;
  for (const auto& [name, entry] : header.entries) in_order.push_back({&entry, &name});
  std::sort(in_order.begin(), in_order.end(), [](const auto& a, const auto& b) {
    return std::pair(a.first->begin, a.first->end) < std::pair(b.first->begin, b.first->end);
  });
  int64_t position = 0;
  for (const auto& [entry, name] : in_order) {
    check<CheckpointError>(entry->begin == position, path, ": tensor ", *name, ": its data begins at ", entry->begin,
                           ", the data before it ends at ", position, " (overlap or hole)");
    position = entry->end;
  }
  check<CheckpointError>(position == data_bytes, path, ": the tensors end at byte ", position, " of ", data_bytes,
                         " bytes of data");
  return header;
}

std::string make_safetensors_header(const std::vector<SafetensorsTensor>& tensors,
                                    const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  if (!metadata.empty()) json["__metadata__"] = metadata;
  int64_t position = 0;
  for (const SafetensorsTensor& tensor : tensors) {
    int64_t bytes = size_of(tensor.dtype);
    for (int64_t dim : tensor.shape) bytes *= dim;
    json[tensor.name] = {
        {"dtype", name_of(tensor.dtype)}, {"shape", tensor.shape}, {"data_offsets", {position, position + bytes}}};
    position += bytes;
  }
  std::string text = json.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t length = text.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + text;
}

}  // namespace braid
