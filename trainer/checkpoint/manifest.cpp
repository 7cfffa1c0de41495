#include "trainer/checkpoint/manifest.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <span>
#include <string_view>
#include <utility>

#include "kernels/core/sha256.h"

namespace braid {
namespace {

using Json = nlohmann::json;

constexpr const char* kFormat = "braid-checkpoint";
// 1.1: CRC-32C of headers and blocks, 1.2: batch_sizes, 1.3: left_out, recent.
constexpr int64_t kMajor = 1, kMinor = 3;
constexpr int kMaxDepth = 4;                       // of a line: tensors, tensor, extents, extent
constexpr size_t kMaxLineBytes = size_t{4} << 20;  // which the JSON library takes many times over
constexpr size_t kCrcDigits = 8;
constexpr const char *kFilesBegin = "\"files\": [", *kFilesEnd = "],";
constexpr const char *kTensorsBegin = "\"tensors\": {", *kTensorsEnd = "},";

// The digest and what closes the text behind it.
std::string last_lines(std::string_view body) { return "\"digest\": \"" + sha256(body) + "\"\n}\n"; }

// rank-00000.safetensors, weights-00000.safetensors and nothing else: a manifest cannot point outside its folder.
bool is_data_file_name(const std::string& name) {
  constexpr std::string_view kDigits = "0123456789", kSuffix = ".safetensors";
  const size_t first = name.starts_with("rank-") ? 5 : name.starts_with("weights-") ? 8 : std::string::npos;
  if (first == std::string::npos || !name.ends_with(kSuffix)) return false;
  const std::string number = name.substr(first, name.size() - kSuffix.size() - first);
  return number.size() >= 5 && number.find_first_not_of(kDigits) == std::string::npos;
}

int64_t num_blocks(int64_t bytes) { return (bytes + kDigestBlockBytes - 1) / kDigestBlockBytes; }

Json to_json(const Shape& shape) {
  Json json = Json::array();
  for (int axis = 0; axis < shape.rank(); ++axis) json.push_back(shape[axis]);
  return json;
}

std::string crc_text(std::span<const uint32_t> crcs) {
  std::string text;
  char digits[kCrcDigits + 1];
  for (const uint32_t crc : crcs) {
    std::snprintf(digits, sizeof digits, "%08x", crc);
    text += digits;
  }
  return text;
}

std::string file_line(const Manifest::File& file) {
  Json json = {{"name", file.name}, {"bytes", file.bytes}, {"sha256", file.sha256}};
  if (file.header_crc32c) json["header_crc32c"] = crc_text({&*file.header_crc32c, 1});
  return json.dump();
}

std::string tensor_line(const std::pair<const std::string, Manifest::LogicalTensor>& named) {
  const auto& [name, tensor] = named;
  Json extents = Json::array(), crcs = Json::array();
  for (const Manifest::Extent& e : tensor.extents) {
    extents.push_back({e.begin, e.end, e.file, e.offset});
    if (!e.crc32c.empty()) crcs.push_back(crc_text(e.crc32c));
  }
  Json json = {{"dtype", name_of(tensor.dtype)}, {"shape", to_json(tensor.shape)}, {"extents", std::move(extents)}};
  if (!crcs.empty()) json["crc32c"] = std::move(crcs);
  return Json(name).dump() + ": " + json.dump();
}

template <class Items, class Line>
std::string lines(const Items& items, Line&& line) {
  std::string text;
  for (const auto& item : items) text += (text.empty() ? "\n" : ",\n") + line(item);
  return text + "\n";
}

// How deep lists and objects lie in one another. (The parser's own callback would tell, but takes time that grows with
// the square of the number of tensors.)
int depth_of(const std::string& json) {
  int depth = 0, deepest = 0;
  bool in_string = false;
  for (size_t i = 0; i < json.size(); ++i) {
    const char c = json[i];
    if (c == '"') in_string = !in_string;
    else if (in_string && c == '\\') ++i;
    else if (!in_string && (c == '[' || c == '{')) deepest = std::max(deepest, ++depth);
    else if (!in_string && (c == ']' || c == '}')) --depth;
  }
  return deepest;
}

// What is wrong with a field, without the path.
struct Problem : std::runtime_error {
  using runtime_error::runtime_error;
};
template <class... Parts>
void require(bool ok, const Parts&... parts) {
  if (!ok) throw Problem(concat(parts...));
}

const Json& field(const Json& json, const char* name) {
  require(json.is_object() && json.contains(name), "it has no ", name, " where one belongs");
  return json[name];
}

int64_t number(const Json& json, const char* what) {
  require(json.is_number_unsigned() && json.get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX), what,
          " is no number of 0 or more");
  return json.get<int64_t>();
}
int64_t number_field(const Json& json, const char* name) { return number(field(json, name), name); }

std::string text(const Json& json, const char* what) {
  require(json.is_string(), what, " is not a text");
  return json.get<std::string>();
}
std::string text_field(const Json& json, const char* name) { return text(field(json, name), name); }

const Json& list_field(const Json& json, const char* name) {
  require(field(json, name).is_array(), name, " is not a list");
  return json[name];
}

// The digests of `count` blocks of something.
std::vector<uint32_t> crcs(const Json& json, int64_t count, const char* kind, const std::string& name) {
  const std::string digits = text(json, "crc32c");
  require(digits.size() == static_cast<uint64_t>(count) * kCrcDigits &&
              digits.find_first_not_of("0123456789abcdef") == std::string::npos,
          kind, name, " has a crc32c that is not ", count, " times ", kCrcDigits, " hexadecimal digits");
  std::vector<uint32_t> crcs;
  for (size_t at = 0; at < digits.size(); at += kCrcDigits)
    std::from_chars(&digits[at], &digits[at] + kCrcDigits, crcs.emplace_back(), 16);
  return crcs;
}

Manifest::File read_file(const Json& json) {
  Manifest::File file{text_field(json, "name"), number_field(json, "bytes"), text_field(json, "sha256"), {}};
  if (json.contains("header_crc32c")) file.header_crc32c = crcs(json["header_crc32c"], 1, "", file.name)[0];
  require(is_data_file_name(file.name), "it names the file ", Json(file.name).dump(),
          ", expected rank-NNNNN.safetensors or weights-NNNNN.safetensors");
  return file;
}

// The list [[steps, rows], …] of this name: steps ascend, from 0 or from anywhere on, which `order` says.
std::vector<std::array<int64_t, 2>> read_steps_and_rows(const Json& json, const std::string& name, bool from_zero,
                                                        const char* order) {
  std::vector<std::array<int64_t, 2>> pairs;
  for (const Json& entry : list_field(json, name.c_str())) {
    require(entry.is_array() && entry.size() == 2, name, " has an entry that is not [steps, rows]");
    const int64_t steps = number(entry[0], ("steps in " + name).c_str());
    const int64_t rows = number(entry[1], ("rows in " + name).c_str());
    const bool in_order = pairs.empty() ? !from_zero || steps == 0 : steps > pairs.back()[0];
    require(rows > 0 && in_order, name, " does not ", order);
    pairs.push_back({steps, rows});
  }
  return pairs;
}

std::vector<double> read_recent(const Json& json, const char* name) {
  std::vector<double> values;
  for (const Json& value : list_field(json, name)) {
    require(value.is_number(), name, " has an entry that is no number");
    values.push_back(value.get<double>());
  }
  return values;
}

void read_tensor(Manifest& manifest, const std::string& name, const Json& json) {
  const std::string dtype_name = text_field(json, "dtype");
  const auto dtype = find_dtype(dtype_name);
  require(dtype.has_value(), "tensor ", name, " has the dtype ", dtype_name);
  Shape shape;
  int64_t bytes = size_of(*dtype);
  for (const Json& dim : list_field(json, "shape")) {
    require(shape.rank() < Shape::kMaxRank, "tensor ", name, " has more than ", Shape::kMaxRank, " axes");
    shape.append(number(dim, "a dimension"));
    require(!__builtin_mul_overflow(bytes, shape[shape.rank() - 1], &bytes), "tensor ", name, " is too large to count");
  }
  const auto [found, is_new] = manifest.tensors.try_emplace(name, Manifest::LogicalTensor{*dtype, shape, {}});
  require(is_new, "it holds the tensor ", name, " twice");
  const Json& extents = list_field(json, "extents");
  const Json* of_extents = json.contains("crc32c") ? &list_field(json, "crc32c") : nullptr;
  require(!of_extents || of_extents->size() == extents.size(), "tensor ", name, " has ", extents.size(),
          " extents and crc32c of another number");
  const int64_t numel = shape.numel();
  for (size_t i = 0; i < extents.size(); ++i) {
    const Json& e = extents[i];
    require(e.is_array() && e.size() == 4, "tensor ", name, " has an extent that is not [begin, end, file, offset]");
    Manifest::Extent extent{number(e[0], "an extent's begin"),
                            number(e[1], "an extent's end"),
                            text(e[2], "an extent's file"),
                            number(e[3], "an extent's offset"),
                            {}};
    require(extent.begin < extent.end, "tensor ", name, " has the extent [", extent.begin, ',', extent.end, ", …]");
    if (of_extents && extent.end <= numel)
      extent.crc32c =
          crcs((*of_extents)[i], num_blocks((extent.end - extent.begin) * size_of(*dtype)), "tensor ", name);
    found->second.extents.push_back(std::move(extent));
  }
}

// The fields, files and tensors of a manifest's text, line by line, so that what the JSON library makes of it is never
// larger than a line.
class LineReader {
 public:
  explicit LineReader(Manifest& manifest) : manifest_(manifest) {}

  void read(std::string_view body) {
    require(body.starts_with("{\n"), "it does not begin with a { on its own line");
    body.remove_prefix(2);
    while (!body.empty()) {
      const size_t end = std::min(body.find('\n'), body.size());
      require(end <= kMaxLineBytes, "it has a line of more than ", kMaxLineBytes, " bytes");
      take(body.substr(0, end));
      body.remove_prefix(std::min(end + 1, body.size()));
    }
    require(at_ == At::kFields && has_files_ && has_tensors_, "it has no ", has_files_ ? "tensors" : "files",
            " where one belongs");
  }
  const Json& fields() const { return fields_; }

 private:
  enum class At { kFields, kFiles, kTensors };

  // `line`, without the comma behind it, as JSON.
  static Json parsed(std::string_view line, bool is_member) {
    if (line.ends_with(',')) line.remove_suffix(1);
    std::string text(line);
    if (is_member) text = "{" + text + "}";
    require(depth_of(text) <= kMaxDepth, "it nests too deep");
    Json json = Json::parse(text);
    require(!is_member || json.size() == 1, "it has a line of ", json.size(), " fields");
    return json;
  }

  void take(std::string_view line) {
    if (at_ == At::kFiles && line == kFilesEnd) at_ = At::kFields;
    else if (at_ == At::kTensors && line == kTensorsEnd) at_ = At::kFields;
    else if (at_ == At::kFiles) manifest_.files.push_back(read_file(parsed(line, false)));
    else if (at_ == At::kTensors) {
      const Json json = parsed(line, true);
      read_tensor(manifest_, json.begin().key(), json.begin().value());
    } else if (line == kFilesBegin && !std::exchange(has_files_, true)) at_ = At::kFiles;
    else if (line == kTensorsBegin && !std::exchange(has_tensors_, true)) at_ = At::kTensors;
    else add_field(parsed(line, true));
  }

  void add_field(const Json& json) {
    const std::string& name = json.begin().key();
    require(name != "files" && name != "tensors" && !fields_.contains(name), "it holds ", name,
            " twice or not in lines");
    if (std::find(std::begin(kFields), std::end(kFields), name) != std::end(kFields))
      fields_[name] = json.begin().value();
  }

  static constexpr const char* kFields[] = {
      "format",          "format_version", "step",   "tokens",          "batch_sizes", "build_id", "world",
      "expert_parallel", "data_digest",    "config", "parameter_table", "left_out",    "recent"};
  Manifest& manifest_;
  Json fields_ = Json::object();
  At at_ = At::kFields;
  bool has_files_ = false, has_tensors_ = false;
};

}  // namespace

std::string Manifest::to_text() const {
  try {
    const Json version = {{"major", kMajor}, {"minor", kMinor}};
    std::string body = "{\n";
    const auto line = [&](const char* name, const Json& value) {
      body += concat('"', name, "\": ", value.dump(), ",\n");
    };
    line("format", kFormat);
    line("format_version", version);
    line("step", info.step);
    line("tokens", info.tokens);
    if (!info.batch_sizes.empty()) line("batch_sizes", info.batch_sizes);
    if (!info.left_out.empty()) line("left_out", info.left_out);
    if (!info.recent_losses.empty() || !info.skipped_steps.empty())
      line("recent", {{"losses", info.recent_losses},
                      {"grad_norms", info.recent_grad_norms},
                      {"skipped_steps", info.skipped_steps}});
    line("build_id", info.build_id);
    line("world", info.num_ranks);
    line("expert_parallel", info.expert_parallel);
    line("data_digest", info.data_digest);
    line("config", info.config_yaml);
    line("parameter_table", info.parameter_table);
    body += concat(kFilesBegin, lines(files, file_line), kFilesEnd, '\n');
    body += concat(kTensorsBegin, lines(tensors, tensor_line), kTensorsEnd, '\n');
    return body + last_lines(body);
  } catch (const Json::exception&) {
    throw CheckpointError("a name or text of the checkpoint is not valid UTF-8, so it cannot be saved");
  }
}

Manifest Manifest::parse(const std::string& text, const std::string& path) {
  const size_t end_bytes = last_lines("").size();
  check<CheckpointError>(text.size() > end_bytes, path, ": is truncated");
  const std::string_view body(text.data(), text.size() - end_bytes);
  check<CheckpointError>(text.compare(body.size(), end_bytes, last_lines(body)) == 0, path,
                         ": does not match its own digest; it is truncated or was changed");
  check<CheckpointError>(body.find('\0') == std::string::npos, path, ": is not valid JSON");
  Manifest manifest;
  try {
    LineReader reader(manifest);
    reader.read(body);
    const Json& json = reader.fields();
    require(text_field(json, "format") == kFormat, "its format is not ", kFormat);
    const Json& version = field(json, "format_version");
    const int64_t major = number_field(version, "major");
    require(major == kMajor, "it has format version ", major, ".", number_field(version, "minor"),
            ", this program reads ", kMajor, ".x; ",
            major > kMajor ? "use a newer braid" : "use the braid that wrote it");
    CheckpointInfo& info = manifest.info;
    info.step = number_field(json, "step");
    info.tokens = number_field(json, "tokens");
    if (json.contains("batch_sizes")) {
      info.batch_sizes =
          read_steps_and_rows(json, "batch_sizes", true, "begin at 0 and ascend, with rows in each step");
      require(!info.batch_sizes.empty(), "batch_sizes is empty");
    }
    if (json.contains("left_out"))
      info.left_out = read_steps_and_rows(json, "left_out", false, "ascend, with rows in each");
    if (json.contains("recent")) {
      const Json& recent = json["recent"];
      info.recent_losses = read_recent(recent, "losses");
      info.recent_grad_norms = read_recent(recent, "grad_norms");
      require(info.recent_losses.size() == info.recent_grad_norms.size(), "recent has ", info.recent_losses.size(),
              " losses and ", info.recent_grad_norms.size(), " grad_norms");
      for (const Json& step : list_field(recent, "skipped_steps"))
        info.skipped_steps.push_back(number(step, "a step in skipped_steps"));
    }
    info.build_id = text_field(json, "build_id");
    info.num_ranks = number_field(json, "world");
    info.expert_parallel = number_field(json, "expert_parallel");
    info.data_digest = text_field(json, "data_digest");
    info.config_yaml = text_field(json, "config");
    info.parameter_table = text_field(json, "parameter_table");
  } catch (const Problem& e) {
    throw CheckpointError(path + ": cannot be used: " + e.what());
  } catch (const Json::exception& e) {
    throw CheckpointError(path + ": is not valid JSON");
  }
  return manifest;
}

void Manifest::add(const std::string& name, DType dtype, const Shape& shape, const Extent& extent) {
  const auto [found, is_new] = tensors.try_emplace(name, LogicalTensor{dtype, shape, {}});
  LogicalTensor& tensor = found->second;
  check<CheckpointError>(tensor.dtype == dtype && tensor.shape == shape, "tensor ", name, " is ", name_of(tensor.dtype),
                         ' ', tensor.shape.to_string(), " and ", name_of(dtype), ' ', shape.to_string(),
                         " in the same checkpoint");
  if (extent.begin == extent.end) return;
  const auto by_begin = [](const Extent& a, const Extent& b) { return a.begin < b.begin; };
  tensor.extents.insert(std::upper_bound(tensor.extents.begin(), tensor.extents.end(), extent, by_begin), extent);
}

void Manifest::append(const Manifest& part) {
  files.insert(files.end(), part.files.begin(), part.files.end());
  for (const auto& [name, tensor] : part.tensors) {
    add(name, tensor.dtype, tensor.shape, {});
    for (const Extent& extent : tensor.extents) add(name, tensor.dtype, tensor.shape, extent);
  }
}

void Manifest::check_coverage(const std::string& path) const {
  for (const auto& [name, tensor] : tensors) {
    int64_t position = 0;
    for (const Extent& e : tensor.extents) {
      check<CheckpointError>(e.begin == position, path, ": tensor ", name, ": elements ", std::min(e.begin, position),
                             " to ", std::max(e.begin, position), " are there ",
                             e.begin < position ? "twice" : "not at all");
      position = e.end;
    }
    check<CheckpointError>(position == tensor.shape.numel(), path, ": tensor ", name, ": its parts end at element ",
                           position, " of ", tensor.shape.numel());
  }
}

SafetensorsTensor stored_tensor(const std::string& name, DType dtype, const Shape& shape, int64_t begin, int64_t end) {
  if (begin != 0 || end != shape.numel()) return {concat(name, '@', begin), dtype, {end - begin}};
  SafetensorsTensor whole{name, dtype, {}};
  for (int axis = 0; axis < shape.rank(); ++axis) whole.shape.push_back(shape[axis]);
  return whole;
}

void check_slice(const CheckpointSlice& slice) {
  check<ShapeError>(0 <= slice.begin && slice.begin <= slice.end && slice.end <= slice.shape.numel(), slice.name,
                    ": elements ", slice.begin, " to ", slice.end, " are outside a tensor of shape ",
                    slice.shape.to_string());
  check<ShapeError>(slice.data.numel() == slice.end - slice.begin, slice.name, ": a slice of ", slice.end - slice.begin,
                    " elements comes with ", slice.data.numel());
}

}  // namespace braid
