#include "trainer/checkpoint/manifest.h"

#include <nlohmann/json.hpp>

#include "data/sha256.h"

namespace braid {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kFormat = "braid-checkpoint";
constexpr int kMajor = 1, kMinor = 0;

std::string digest_tail(const std::string& body) { return ",\n\"digest\": \"" + sha256(body) + "\"\n}\n"; }

// rank-00000.safetensors and nothing else: a manifest cannot point outside its folder.
bool is_shard_name(const std::string& name) {
  static const std::string prefix = "rank-", suffix = ".safetensors";
  if (name.size() != prefix.size() + 5 + suffix.size()) return false;
  if (name.compare(0, prefix.size(), prefix) != 0) return false;
  if (name.compare(name.size() - suffix.size(), suffix.size(), suffix) != 0) return false;
  return name.find_first_not_of("0123456789", prefix.size()) == prefix.size() + 5;
}

DType dtype_named(const std::string& name) {
  for (DType dtype : {DType::kF64, DType::kF32, DType::kBF16, DType::kI64, DType::kI32, DType::kU8})
    if (name == name_of(dtype)) return dtype;
  throw std::invalid_argument("unknown dtype " + name);
}

Json to_json(const Shape& shape) {
  Json json = Json::array();
  for (int axis = 0; axis < shape.rank(); ++axis) json.push_back(shape[axis]);
  return json;
}

}  // namespace

std::string Manifest::to_text() const {
  Json json;
  json["format"] = kFormat;
  json["format_version"] = {{"major", kMajor}, {"minor", kMinor}};
  json["step"] = info.step;
  json["tokens"] = info.tokens;
  json["build_id"] = info.build_id;
  json["ranks"] = info.num_ranks;
  json["expert_parallel"] = info.expert_parallel;
  json["data_digest"] = info.data_digest;
  json["config"] = info.config_yaml;
  json["parameter_table"] = info.parameter_table;
  json["files"] = Json::array();
  for (const File& file : files)
    json["files"].push_back({{"name", file.name}, {"bytes", file.bytes}, {"sha256", file.sha256}});
  json["tensors"] = Json::object();
  for (const auto& [name, tensor] : tensors) {
    Json extents = Json::array();
    for (const Extent& e : tensor.extents) extents.push_back({e.begin, e.end, e.file, e.entry});
    json["tensors"][name] = {
        {"dtype", name_of(tensor.dtype)}, {"shape", to_json(tensor.shape)}, {"extents", std::move(extents)}};
  }
  std::string body = json.dump();
  body.pop_back();  // the closing brace comes behind the digest
  return body + digest_tail(body);
}

Manifest Manifest::parse(const std::string& text, const std::string& path) {
  const size_t tail = text.rfind(",\n\"digest\"");
  check<CheckpointError>(tail != std::string::npos && text.substr(tail) == digest_tail(text.substr(0, tail)), path,
                         ": does not match its own digest; it is truncated or was changed");
  Manifest manifest;
  try {
    const Json json = Json::parse(text);
    check<CheckpointError>(json.at("format") == kFormat, path, ": is not the manifest of a checkpoint");
    const int major = json.at("format_version").at("major");
    check<CheckpointError>(major == kMajor, path, ": has format version ", major, ", this program reads version ",
                           kMajor);
    CheckpointInfo& info = manifest.info;
    info.step = json.at("step");
    info.tokens = json.at("tokens");
    info.build_id = json.at("build_id");
    info.num_ranks = json.at("ranks");
    info.expert_parallel = json.at("expert_parallel");
    info.data_digest = json.at("data_digest");
    info.config_yaml = json.at("config");
    info.parameter_table = json.at("parameter_table");
    for (const Json& file : json.at("files")) {
      manifest.files.push_back({file.at("name"), file.at("bytes"), file.at("sha256")});
      check<CheckpointError>(is_shard_name(manifest.files.back().name), path, ": names the file ",
                             manifest.files.back().name, ", which is no shard of a checkpoint");
    }
    for (const auto& [name, value] : json.at("tensors").items()) {
      LogicalTensor& tensor = manifest.tensors[name];
      tensor.dtype = dtype_named(value.at("dtype"));
      for (int64_t dim : value.at("shape")) tensor.shape.append(dim);
      for (const Json& e : value.at("extents")) tensor.extents.push_back({e.at(0), e.at(1), e.at(2), e.at(3)});
    }
  } catch (const CheckpointError&) {
    throw;
  } catch (const std::exception& e) {
    throw CheckpointError(concat(path, ": is not a manifest this program can read (", e.what(), ")"));
  }
  manifest.check_coverage(path);
  return manifest;
}

void Manifest::check_coverage(const std::string& path) const {
  for (const auto& [name, tensor] : tensors) {
    int64_t position = 0;
    for (const Extent& e : tensor.extents) {
      check<CheckpointError>(e.begin == position && e.end > e.begin, path, ": tensor ", name, ": a piece begins at ",
                             e.begin, ", the pieces before it end at ", position);
      position = e.end;
    }
    check<CheckpointError>(position == tensor.shape.numel(), path, ": tensor ", name, ": its pieces end at ", position,
                           " of ", tensor.shape.numel(), " elements");
  }
}

}  // namespace braid
