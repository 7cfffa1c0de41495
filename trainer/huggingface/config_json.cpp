#include "trainer/huggingface/config_json.h"

#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <tuple>
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
  void read(const std::string& key, RopeType& type) const {
    const Json& word = *find(key);
    for (RopeType known : {RopeType::kDefault, RopeType::kLinear, RopeType::kYarn}) {
      if (word != name_of_enum(known)) continue;
      type = known;
      return;
    }
    expect(false, key, word, "\"default\", \"linear\" or \"yarn\"");
  }
  void read(const std::string&, RopeParameters&) const {}  // see read_rope
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
  std::map<std::string, Json> stated;  // in the dictionaries
  RopeParameters& rope_parameters = model.rope_parameters;
  for (const std::string name : {"rope_parameters", "rope_scaling"}) {
    const Json* found = top.find_not_null(name);
    if (found == nullptr) continue;
    top.expect(found->is_object(), name, *found, "an object");
    const Section rope(path, name + ".", *found);
    for (const auto& [key, value] : found->items()) {
      bool known = true;
      if (key == "rope_type" || key == "type") rope.read(key, rope_parameters.rope_type);
      else if (key == "rope_theta") rope.read(key, model.rope_theta);
      else if (key == "partial_rotary_factor") rope.read(key, model.partial_rotary_factor);
      else {
        known = false;
        rope_parameters.visit([&](const char* its, auto& member, const char*) {
          if (key != its) return;
          known = true;
          if (!value.is_null()) rope.read(key, member);  // transformers takes null for absent
        });
      }
      check<CheckpointError>(
          known, path, ": ", name, " holds ", shown_value(key),
          ", expected rope_theta, partial_rotary_factor and the keys of rope_type default, linear or yarn");
      if (value.is_null()) continue;
      const auto [at, is_new] = stated.emplace(key == "type" ? "rope_type" : key, value);
      rope.expect(at->second == value, key, value, concat(shown_value(at->second), " as elsewhere in the file"));
    }
  }
  for (const std::string key : {"rope_theta", "partial_rotary_factor"}) {
    const Json* also = top.find(key);
    if (also == nullptr || !stated.contains(key)) continue;
    top.expect(*also == stated[key], key, *also, concat(shown_value(stated[key]), " as elsewhere in the file"));
  }
  if (rope_parameters.rope_type == RopeType::kDefault) rope_parameters = {};  // nothing else is read of it
}

// One model, one config: layer_types, which version 5 always writes, goes where full_attention_interval says the same.
ModelConfig without_regular_layer_types(const ModelConfig& model) {
  ModelConfig regular = model;
  regular.layer_types.clear();
  for (size_t layer = 0; layer < model.layer_types.size(); ++layer)
    if (model.layer_types[layer] != regular.layer_type(static_cast<int64_t>(layer))) return model;
  return regular;
}

// What differs from its default.
Json rope_json(const RopeParameters& rope) {
  Json json = {{"rope_type", name_of_enum(rope.rope_type)}, {"factor", rope.factor}};
  if (rope.rope_type != RopeType::kYarn) return json;
  if (rope.original_max_position_embeddings != 0)
    json["original_max_position_embeddings"] = rope.original_max_position_embeddings;
  const RopeParameters usual;
  for (const auto& [key, value, default_value] :
       {std::tuple("attention_factor", rope.attention_factor, usual.attention_factor),
        std::tuple("beta_fast", rope.beta_fast, usual.beta_fast),
        std::tuple("beta_slow", rope.beta_slow, usual.beta_slow), std::tuple("mscale", rope.mscale, usual.mscale),
        std::tuple("mscale_all_dim", rope.mscale_all_dim, usual.mscale_all_dim)})
    if (value != default_value) json[key] = value;
  if (!rope.truncate) json["truncate"] = false;
  return json;
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
    } else if constexpr (std::is_same_v<decltype(value), const RopeParameters&>) {
      if (value.rope_type != RopeType::kDefault) json["rope_scaling"] = rope_json(value);
    } else {
      json[key] = value;
    }
  });
  return json.dump(2) + "\n";
}

}  // namespace braid
