#include "trainer/huggingface/config_json.h"

#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <type_traits>

#include "trainer/checkpoint/json_text.h"
#include "trainer/config/config_reader.h"

namespace braid {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMaxBytes = int64_t{1} << 20;
constexpr int kMaxDepth = 32;
constexpr const char* kModelType = "qwen3_next";

// Where Qwen3NextConfig of transformers (5.23) has another default than ModelConfig, which has the released model's.
ModelConfig transformers_defaults() {
  ModelConfig model;
  model.max_position_embeddings = 32768;
  model.rope_theta = 10000;
  return model;
}

// Keys that are not in ModelConfig, with the one value that Braid builds.
const Json& only_values() {
  static const Json kOnly = {{"decoder_sparse_step", 1},    {"mlp_only_layers", Json::array()},
                             {"use_sliding_window", false}, {"layer_scale", false},
                             {"mlp_bias", false},           {"quantization_config", Json()}};
  return kOnly;
}

std::string shown_value(const Json& value) {
  constexpr size_t kLongest = 100;
  const std::string text = value.dump(-1, ' ', true);
  return text.size() <= kLongest ? text : text.substr(0, kLongest) + "...";
}

Json parse(const StoredFile& file) {
  const std::string& path = file.path();
  check<CheckpointError>(file.size() <= kMaxBytes, path, ": is ", file.size(), " bytes long, at most ", kMaxBytes,
                         " are read");
  const std::string text = read_json_text(file, 0, file.size());

  std::vector<std::set<std::string>> keys(kMaxDepth + 1);  // of the object that is open at each depth
  std::string last_key;
  const auto watch = [&](int depth, Json::parse_event_t event, Json& value) {
    check<CheckpointError>(depth <= kMaxDepth, path, ": nests deeper than ", kMaxDepth, " levels");
    if (event == Json::parse_event_t::object_start) keys[depth].clear();
    if (event == Json::parse_event_t::key) {
      last_key = value.get<std::string>();
      check<CheckpointError>(keys[depth - 1].insert(last_key).second, path, ": holds the key ", shown_value(value),
                             " twice");
    }
    return true;
  };
  try {
    return Json::parse(text, watch);
  } catch (const Json::exception&) {
    throw CheckpointError(concat(path, ": is not valid JSON in UTF-8",
                                 last_key.empty() ? "" : " at or behind the key " + shown_value(last_key)));
  }
}

// An object of the file. A key that is absent or, where transformers takes that for absent, null gives no value.
class Section {
 public:
  Section(const std::string& path, const std::string& prefix, const Json& object)
      : path_(path), prefix_(prefix), object_(object) {}

  const Json* find(const std::string& key) const {
    const auto found = object_.find(key);
    return found == object_.end() ? nullptr : &*found;
  }
  const Json* find_not_null(const std::string& key) const {
    const Json* value = find(key);
    return value == nullptr || value->is_null() ? nullptr : value;
  }

  // Overwrites `value` if the key is there.
  void read(const std::string& key, bool& value) const {
    const Json* found = find(key);
    if (found == nullptr) return;
    expect(found->is_boolean(), key, *found, "true or false");
    value = found->get<bool>();
  }
  void read(const std::string& key, std::string& value) const {
    const Json* found = find(key);
    if (found == nullptr) return;
    expect(found->is_string(), key, *found, "a string");
    value = found->get<std::string>();
  }
  void read(const std::string& key, int64_t& value) const {
    const Json* found = find(key);
    if (found == nullptr) return;
    const bool fits =
        found->is_number_integer() &&
        (!found->is_number_unsigned() || found->get<uint64_t>() <= uint64_t{std::numeric_limits<int64_t>::max()});
    expect(fits, key, *found, "an integer");
    value = found->get<int64_t>();
  }
  void read(const std::string& key, double& value) const {
    const Json* found = find(key);
    if (found == nullptr) return;
    expect(found->is_number(), key, *found, "a number");
    value = found->get<double>();
  }
  void read(const std::string& key, std::vector<LayerType>& types) const {
    const Json* found = find_not_null(key);
    if (found == nullptr) return;
    expect(found->is_array(), key, *found, "a list");
    types.clear();
    for (const Json& word : *found) types.push_back(layer_type(key, word));
  }

  void expect(bool ok, const std::string& key, const Json& found, const std::string& expected) const {
    check<CheckpointError>(ok, path_, ": ", prefix_, key, " is ", shown_value(found), ", expected ", expected);
  }

 private:
  LayerType layer_type(const std::string& key, const Json& word) const {
    for (LayerType type : {LayerType::kLinearAttention, LayerType::kFullAttention})
      if (word == name_of_enum(type)) return type;
    check<CheckpointError>(false, path_, ": ", prefix_, key, " holds ", shown_value(word),
                           ", expected linear_attention or full_attention");
    return {};
  }

  const std::string& path_;
  const std::string prefix_;
  const Json& object_;
};

// Rotary embeddings are described by keys of their own (version 4), by rope_parameters (version 5, which also takes it
// for rope_scaling), or by both.
void read_rope(const std::string& path, const Section& top, ModelConfig& model) {
  std::map<std::string, double> stated;  // the numbers of the dictionaries
  for (const std::string name : {"rope_parameters", "rope_scaling"}) {
    const Json* found = top.find_not_null(name);
    if (found == nullptr) continue;
    top.expect(found->is_object(), name, *found, "an object");
    const Section rope(path, name + ".", *found);
    for (const auto& [key, value] : found->items()) {
      if (key == "rope_type" || key == "type") {
        rope.expect(value == "default", key, value, "\"default\": scaled rotary embeddings are not supported");
      } else {
        check<CheckpointError>(key == "rope_theta" || key == "partial_rotary_factor", path, ": ", name, " holds ",
                               shown_value(key), ", expected rope_type, rope_theta and partial_rotary_factor");
        double number = 0;
        rope.read(key, number);
        const auto [at, is_new] = stated.emplace(key, number);
        rope.expect(at->second == number, key, value, concat(at->second, " as elsewhere in the file"));
      }
    }
  }
  for (const auto& [key, number] : stated) {
    const Json* also = top.find(key);
    top.expect(also == nullptr || *also == number, key, also == nullptr ? Json() : *also,
               concat(number, " as elsewhere in the file"));
    (key == "rope_theta" ? model.rope_theta : model.partial_rotary_factor) = number;
  }
}

// One model, one config: layer_types, which version 5 always writes, goes where full_attention_interval says the same.
ModelConfig without_regular_layer_types(const ModelConfig& model) {
  ModelConfig regular = model;
  regular.layer_types.clear();
  for (size_t layer = 0; layer < model.layer_types.size(); ++layer)
    if (model.layer_types[layer] != regular.layer_type(static_cast<int64_t>(layer))) return model;
  return regular;
}

}  // namespace

ModelConfig read_config_json(const std::string& path) {
  const Json json = parse(StoredFile(path, Links::kFollow));
  check<CheckpointError>(json.is_object(), path, ": is not an object");
  const Section top(path, "", json);

  const Json* type = top.find("model_type");
  check<CheckpointError>(type != nullptr, path, ": model_type is missing, expected \"", kModelType, "\"");
  top.expect(*type == kModelType, "model_type", *type, concat("\"", kModelType, "\", the only one supported"));
  for (const auto& [key, only] : only_values().items()) {
    const Json* found = top.find_not_null(key);
    top.expect(found == nullptr || *found == only, key, found == nullptr ? only : *found,
               shown_value(only) + ", the only value supported");
  }

  RunConfig config;
  config.model = transformers_defaults();
  config.model.visit([&](const char* key, auto& value, const char*) { top.read(key, value); });
  read_rope(path, top, config.model);
  try {
    check_model_config(config);
  } catch (const ConfigError& error) {
    throw CheckpointError(concat(path, ": ", error.what()));
  }
  return without_regular_layer_types(config.model);
}

std::string to_config_json(const ModelConfig& model, DType dtype) {
  Json json = {{"architectures", {"Qwen3NextForCausalLM"}},
               {"model_type", kModelType},
               {"decoder_sparse_step", 1},
               {"mlp_only_layers", Json::array()},
               {"rope_scaling", nullptr},
               {"torch_dtype", dtype == DType::kBF16 ? "bfloat16" : "float32"},
               {"use_cache", true}};
  ModelConfig copy = model;  // visit hands out references
  copy.visit([&](const std::string& key, const auto& value, const char*) {
    if constexpr (std::is_same_v<decltype(value), const std::vector<LayerType>&>) {
      if (value.empty()) return;  // full_attention_interval says it
      for (LayerType type : value) json[key].push_back(name_of_enum(type));
    } else {
      json[key] = value;
    }
  });
  return json.dump(2) + "\n";
}

}  // namespace braid
